//! State-space kernels: convolution and recurrences over float operands of any strides, computed in f32.
//!
//! Work is cut over sequences, heads and channels only; a sequence's tokens are one task's, in order, so that a
//! sequence has the same bits among others as alone. `spans` says where sequences lie, `view` reads
//! and writes runs of operands, `advance` is the one step of a state that the recurrences share, `product` the tile of
//! the matrix products that chunks are made of, `decays` what is left of one token at another.

mod advance;
mod causal_conv1d;
mod decays;
mod gated_delta_chunk;
mod gated_delta_rule;
mod product;
mod selective_scan;
mod spans;
mod ssd_chunk;
mod ssd_scan;
mod view;

pub(crate) use causal_conv1d::{ConvViews, causal_conv1d};
pub(crate) use gated_delta_rule::{GatedDeltaRuleViews, gated_delta_rule, plan as plan_gated_delta_rule};
pub(crate) use selective_scan::{SelectiveScanViews, plan as plan_selective_scan, selective_scan};
pub(crate) use spans::Spans;
pub(crate) use ssd_scan::{SsdScanViews, plan as plan_ssd_scan, ssd_scan};
pub(crate) use view::View;
