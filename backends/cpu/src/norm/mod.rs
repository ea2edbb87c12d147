//! Norms and softmax: a row at a time, in vectors of f32, with sums in a fixed order of lanes.

mod layer_norm;
mod log_softmax;
mod rms_norm;
mod softmax;

pub(crate) use layer_norm::{LayerNormPointers, layer_norm};
pub(crate) use log_softmax::log_softmax;
pub(crate) use rms_norm::{add_rms_norm, rms_norm};
pub(crate) use softmax::{softmax, softmax_row};
