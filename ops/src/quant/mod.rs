//! Weights in other forms than a dense matrix, and the operators that take them.
//!
//! A scheme says how codes become numbers; a weight is one operand type for every operator.

pub mod act_quant;
pub mod dequantize;
pub mod dynamic_quantize;
pub mod hadamard;
pub mod linear;
pub mod prepack;
pub mod quantize;
pub mod scheme;
pub mod weight;

pub use act_quant::ActQuant;
pub use dequantize::DequantizeSpec;
pub use dynamic_quantize::DynamicQuantizeSpec;
pub use hadamard::HadamardSpec;
pub use linear::LinearSpec;
pub use prepack::{PrepackSpec, RoundTrip, UnpackSpec};
pub use quantize::QuantizeSpec;
pub use scheme::{Offset, QuantScheme, ScaleKind};
pub use weight::{PackedContent, PackedSpec, QuantSpec, WeightSpec};
