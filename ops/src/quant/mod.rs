//! Weights in other forms than a dense matrix, and the operators that take them.
//!
//! A scheme says how integer codes become numbers; a weight is one operand type for every operator.

pub mod dequantize;
pub mod linear;
pub mod prepack;
pub mod scheme;
pub mod weight;

pub use dequantize::DequantizeSpec;
pub use linear::{ActQuant, LinearSpec};
pub use prepack::{PrepackSpec, RoundTrip, UnpackSpec};
pub use scheme::{Offset, QuantScheme, ScaleKind};
pub use weight::{PackedContent, PackedSpec, QuantSpec, WeightSpec};
