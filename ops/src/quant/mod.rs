//! Weights in other forms than a dense matrix, and the operators that take them.
//!
//! A scheme says how codes become numbers; a weight is one operand type for every operator.

pub mod act_quant;
pub mod dequantize;
pub mod linear;
pub mod prepack;
pub mod scheme;
pub mod weight;

pub use act_quant::ActQuant;
pub use dequantize::DequantizeSpec;
pub use linear::LinearSpec;
pub use prepack::{PrepackSpec, RoundTrip, UnpackSpec};
pub use scheme::{Offset, QuantScheme, ScaleKind};
pub use weight::{PackedContent, PackedSpec, QuantSpec, WeightSpec};
