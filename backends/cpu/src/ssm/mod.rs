//! State-space kernels: convolution and recurrences over float operands of any strides, computed in f32.
//!
//! Work is cut over sequences, heads and channels only; a sequence's tokens are one task's, in order. `view` reads
//! and writes runs of operands, `advance` is the one step of a state that the recurrences share.

mod advance;
mod causal_conv1d;
mod selective_scan;
mod view;

pub(crate) use causal_conv1d::{ConvViews, causal_conv1d};
pub(crate) use selective_scan::{SelectiveScanViews, plan as plan_selective_scan, selective_scan};
pub(crate) use view::View;
