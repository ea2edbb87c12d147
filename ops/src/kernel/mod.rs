//! The kernel core: operators a backend must have, because they cannot be composed from the others.

pub mod gemm;

pub use gemm::{Activation, GemmForm, GemmSpec};
