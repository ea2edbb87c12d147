//! [`ExpertFfn`]: the feed-forward network of a mixture of experts.

use super::ExpertFfn;
use crate::experts::Experts;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::moe::{ExpertFfnSpec, GateUpOrder};
use portolan_ops::quant::ActQuant;
use smallvec::SmallVec;

impl ExpertFfn {
    /// The weighted sum of what the experts of each token make of it.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        x: &Tensor,
        expert_ids: &Tensor,
        weights: &Tensor,
        gate_up: &Experts,
        down: &Experts,
        out: &mut Tensor,
    ) -> Result<Self> {
        let spec = ExpertFfnSpec::new(
            x.spec(),
            expert_ids.spec(),
            weights.spec(),
            gate_up.spec(),
            down.spec(),
            out.spec(),
        )?;
        let operands: SmallVec<[&Tensor; 14]> = [x, expert_ids, weights]
            .into_iter()
            .chain(gate_up.tensors())
            .chain(down.tensors())
            .chain([&*out])
            .collect();
        Self::bind(spec, &operands)
    }

    /// Adds `bias [E, 2·I]` to the first product.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::with_gate_up_bias`] and [`crate::Call::bind`].
    pub fn gate_up_bias(self, bias: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_gate_up_bias(bias.spec())?, &[("gate_up_bias", bias)])
    }

    /// Adds `bias [E, N]` to the second product.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::with_down_bias`] and [`crate::Call::bind`].
    pub fn down_bias(self, bias: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_down_bias(bias.spec())?, &[("down_bias", bias)])
    }

    /// Says where gate and up lie.
    ///
    /// # Errors
    /// As [`crate::Call::bind`].
    pub fn order(self, order: GateUpOrder) -> Result<Self> {
        self.rebind(self.spec().clone().with_order(order), &[])
    }

    /// Bounds the unit.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::with_limit`].
    pub fn limit(self, limit: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_limit(limit)?, &[])
    }

    /// Multiplies the gate inside the sigmoid.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::with_alpha`].
    pub fn alpha(self, alpha: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_alpha(alpha)?, &[])
    }

    /// Adds to up.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::with_up_offset`].
    pub fn up_offset(self, up_offset: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_up_offset(up_offset)?, &[])
    }

    /// Announces how many places are no padding, for costs.
    ///
    /// # Errors
    /// As [`crate::Call::bind`].
    pub fn expected_places(self, places: usize) -> Result<Self> {
        self.rebind(self.spec().clone().with_expected_places(places), &[])
    }

    /// Rounds the activations of both products.
    ///
    /// # Errors
    /// As [`ExpertFfnSpec::with_act_quant`].
    pub fn act_quant(self, act_quant: ActQuant) -> Result<Self> {
        self.rebind(self.spec().clone().with_act_quant(act_quant)?, &[])
    }
}

/// The weighted sum of what the experts of each token make of it; see [`ExpertFfnSpec`].
///
/// # Errors
/// As [`ExpertFfn::new`] and [`Stream::run`].
pub fn expert_ffn(
    stream: &Stream,
    x: &Tensor,
    expert_ids: &Tensor,
    weights: &Tensor,
    gate_up: &Experts,
    down: &Experts,
) -> Result<Tensor> {
    let mut out = stream.empty(&ExpertFfnSpec::out_spec(x.spec(), gate_up.spec(), down.spec())?)?;
    stream.run(ExpertFfn::new(x, expert_ids, weights, gate_up, down, &mut out)?)?;
    Ok(out)
}
