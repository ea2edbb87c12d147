//! [`MoeGate`]: which experts a token goes to, and how much each of them counts.

use super::MoeGate;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::moe::{GateScore, GroupScore, MoeGateSpec};

impl MoeGate {
    /// The best experts of every row of `logits [T, E]` by score: as many as expert_ids has columns.
    ///
    /// # Errors
    /// As [`MoeGateSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        score: GateScore,
        logits: &Tensor,
        weights: &mut Tensor,
        expert_ids: &mut Tensor,
    ) -> Result<Self> {
        let spec = MoeGateSpec::new(score, logits.spec(), weights.spec(), expert_ids.spec())?;
        Self::bind(spec, &[logits, weights, expert_ids])
    }

    /// The experts that `table [V, k]` names for `token_ids [T]`.
    ///
    /// # Errors
    /// As [`MoeGateSpec::hashed`] and [`crate::Call::bind`].
    pub fn hashed(
        score: GateScore,
        logits: &Tensor,
        token_ids: &Tensor,
        table: &Tensor,
        weights: &mut Tensor,
        expert_ids: &mut Tensor,
    ) -> Result<Self> {
        let spec = MoeGateSpec::hashed(
            score,
            logits.spec(),
            token_ids.spec(),
            table.spec(),
            weights.spec(),
            expert_ids.spec(),
        )?;
        Self::bind(spec, &[logits, token_ids, table, weights, expert_ids])
    }

    /// Adds `bias [E]` to the scores for the choice only.
    ///
    /// # Errors
    /// As [`MoeGateSpec::with_bias`] and [`crate::Call::bind`].
    pub fn bias(self, bias: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_bias(bias.spec())?, &[("bias", bias)])
    }

    /// Opens to each token the experts of its `topk_group` best groups only.
    ///
    /// # Errors
    /// As [`MoeGateSpec::with_groups`].
    pub fn groups(self, n_group: usize, topk_group: usize, score: GroupScore) -> Result<Self> {
        self.rebind(self.spec().clone().with_groups(n_group, topk_group, score)?, &[])
    }

    /// Divides a token's weights by their sum.
    ///
    /// # Errors
    /// As [`crate::Call::bind`].
    pub fn renormalize(self) -> Result<Self> {
        self.rebind(self.spec().clone().with_renormalize(), &[])
    }

    /// Multiplies the weights.
    ///
    /// # Errors
    /// As [`MoeGateSpec::with_scale`].
    pub fn scale(self, scale: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_scale(scale)?, &[])
    }
}

/// Weights and ids of the `top_k` best experts of every row, weights divided by their sum; see [`MoeGateSpec`].
///
/// # Errors
/// As [`MoeGate::new`] and [`Stream::run`].
pub fn moe_gate(
    stream: &Stream,
    score: GateScore,
    logits: &Tensor,
    top_k: usize,
) -> Result<(Tensor, Tensor)> {
    let (weights, ids) = MoeGateSpec::out_specs(logits.spec(), top_k)?;
    let (mut weights, mut ids) = (stream.empty(&weights)?, stream.empty(&ids)?);
    stream.run(MoeGate::new(score, logits, &mut weights, &mut ids)?.renormalize()?)?;
    Ok((weights, ids))
}
