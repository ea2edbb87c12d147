//! Gated activations: an activation of one tensor times another. Plain activations are unary operators, or
//! the epilogue of a matrix product.

pub mod swiglu;

pub use swiglu::SwigluSpec;
