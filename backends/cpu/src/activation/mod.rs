//! Gated activations, element by element in vectors of f32.

mod gate;
mod geglu;
mod swiglu;

pub(crate) use gate::GatePointers;
pub(crate) use geglu::geglu;
pub(crate) use swiglu::swiglu;
