//! Gated activations, element by element in vectors of f32.

mod swiglu;

pub(crate) use swiglu::swiglu;
