//! The gated feed-forward layer (Shazeer 2020).

use crate::Error;
use crate::nn::{Linear, Loader};
use portolan_core::{Stream, Tensor, ops};

/// `down(silu(gate(x)) · up(x))`; gate and up come out of one product.
#[derive(Clone, Debug)]
pub struct Ffn {
    gate_up: Linear,
    down: Linear,
}

impl Ffn {
    /// Loads the weights `{name}.gate`, `{name}.up` and `{name}.down` of a layer.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(
        loader: &mut Loader<'_>,
        name: &str,
        layer: usize,
        hidden: usize,
        width: usize,
        bias: bool,
    ) -> Result<Self, Error> {
        let [gate, up, down] = ["gate", "up", "down"].map(|part| format!("{name}.{part}"));
        Ok(Self {
            gate_up: Linear::load(loader, &[(&gate, width), (&up, width)], layer, hidden, bias)?,
            down: Linear::load(loader, &[(&down, hidden)], layer, width, bias)?,
        })
    }

    /// `[tokens, hidden]` to the same.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        let gated = ops::swiglu(stream, &self.gate_up.forward(stream, x)?)?;
        self.down.forward(stream, &gated)
    }
}
