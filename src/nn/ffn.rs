//! The gated feed-forward layer (Shazeer 2020).

use crate::Error;
use crate::nn::{Linear, Loader, Share};
use portolan_core::{Stream, Tensor, ops};

/// `down(silu(gate(x)) · up(x))`; gate and up come out of one product.
#[derive(Clone, Debug)]
pub struct Ffn {
    gate_up: Linear,
    down: Linear,
}

impl Ffn {
    /// Loads a rank's inner columns of the weights `{name}.gate`, `{name}.up` and `{name}.down` of a layer.
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
        let inner = loader.layout().share(width, "inner columns")?;
        let gate_up = [&gate, &up].map(|name| Share::whole(name, width, hidden).rows(inner.clone()));
        let down = Share::whole(&down, hidden, width).columns(inner);
        let is_first = loader.layout().is_first();
        Ok(Self {
            gate_up: Linear::load_shares(loader, &gate_up, layer, bias)?,
            down: Linear::load_shares(loader, &[down], layer, bias && is_first)?,
        })
    }

    /// `[tokens, hidden]` to this rank's part of the same.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        let gated = ops::swiglu(stream, &self.gate_up.forward(stream, x)?)?;
        self.down.forward(stream, &gated)
    }
}
