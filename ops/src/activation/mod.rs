//! Gated activations: an activation of one tensor times another. Plain activations are unary operators, or
//! the epilogue of a matrix product.

mod gate;
pub mod geglu;
pub mod swiglu;

pub use geglu::{GegluSpec, GeluKind};
pub use swiglu::SwigluSpec;
