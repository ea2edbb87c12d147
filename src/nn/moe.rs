//! The feed-forward layer of many experts, of which each token goes to a few (Shazeer et al. 2017).

use crate::Error;
use crate::load::config::MoeConfig;
use crate::nn::{Linear, Loader};
use portolan_core::{Experts, Stream, Tensor, call, ops};
use portolan_ops::moe::{GateScore, MoeGateSpec};

/// A router and its experts: `Σ weight_e · down_e(silu(gate_e(x)) · up_e(x))` over the best experts by softmax.
#[derive(Clone, Debug)]
pub struct MoeFfn {
    router: Linear,
    gate_up: Experts,
    down: Experts,
    top_k: usize,
    renormalize: bool,
}

impl MoeFfn {
    /// Loads the router and the experts of a layer.
    ///
    /// # Errors
    /// Those of the file and of the device.
    pub fn load(loader: &mut Loader<'_>, config: &MoeConfig, layer: usize) -> Result<Self, Error> {
        let (hidden, width, count) = (config.decoder.hidden, config.expert_ffn, config.experts);
        let gate_up =
            [("layers.{i}.experts.{e}.gate.weight", width), ("layers.{i}.experts.{e}.up.weight", width)];
        let down = [("layers.{i}.experts.{e}.down.weight", hidden)];
        Ok(Self {
            router: Linear::load(loader, &[("layers.{i}.router", count)], layer, hidden, false)?,
            gate_up: loader.experts(&gate_up, layer, count, hidden)?,
            down: loader.experts(&down, layer, count, width)?,
            top_k: config.top_k,
            renormalize: config.renormalize,
        })
    }

    /// `[tokens, hidden]` to the same.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        let logits = self.router.forward(stream, x)?;
        let (weights, ids) = MoeGateSpec::out_specs(logits.spec(), self.top_k)?;
        let (mut weights, mut ids) = (stream.empty(&weights)?, stream.empty(&ids)?);
        let gate = call::MoeGate::new(GateScore::Softmax, &logits, &mut weights, &mut ids)?;
        stream.run(if self.renormalize { gate.renormalize()? } else { gate })?;
        Ok(ops::expert_ffn(stream, x, &ids, &weights, &self.gate_up, &self.down)?)
    }
}
