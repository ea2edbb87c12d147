//! A state that runs through a sequence cut into runs of tokens: what compositions of state-space operators share.

use super::parts::Parts;
use crate::call::{Fill, Scan};
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, ReduceKind, UnaryKind};
use portolan_ops::{DType, Result};

/// States of the tokens that are worked on at a time; at least one token is.
const STATES_BYTES: usize = 64 << 20;

/// The state between runs.
pub(super) struct StateRuns {
    state: Tensor,
}

impl StateRuns {
    /// A copy of `initial`, or 0, laid out as `[batch, .., n]`.
    pub(super) fn new(p: &Parts<'_, '_>, initial: Option<Tensor>, dims: &[usize]) -> Result<Self> {
        let mut state = p.scratch(DType::F32, dims)?;
        match initial {
            Some(initial) => p.store(&initial, &state.reshape(initial.dims())?)?,
            None => p.run(Fill::new(&mut state, 0.0)?)?,
        }
        Ok(Self { state })
    }

    /// The state as it stands.
    pub(super) fn state(&self) -> &Tensor {
        &self.state
    }

    /// `(first, count)` of runs whose states fit together.
    pub(super) fn cut(&self, tokens: usize) -> impl Iterator<Item = (usize, usize)> {
        let step = (STATES_BYTES / (4 * self.state.numel()).max(1)).max(1);
        (0..tokens).step_by(step).map(move |first| (first, step.min(tokens - first)))
    }

    /// Runs `h = decay · h + input` over dimension 1 of input `[batch, count, .., n]`, from where the state stands,
    /// and gives `Σ_n factor · h`; decay and factor broadcast to input.
    pub(super) fn advance(
        &self,
        p: &Parts<'_, '_>,
        decay: &Tensor,
        input: &Tensor,
        factor: &Tensor,
    ) -> Result<Tensor> {
        let mut h = input.clone();
        let scan = Scan::linear(decay, input, 1, &mut h)?.initial(&self.state)?;
        p.run(scan.last(&mut self.state.clone())?)?;
        p.binary_in_place(BinaryKind::Mul, &h, factor)?;
        p.reduce(ReduceKind::Sum, &h, h.dims().len() - 1)
    }

    /// Writes the state to `last`, if it is wanted.
    pub(super) fn finish(&self, p: &Parts<'_, '_>, last: Option<Tensor>) -> Result<()> {
        last.map_or(Ok(()), |last| p.store(&self.state.reshape(last.dims())?, &last))
    }
}

/// Step sizes as f32: what is given, behind its bias and softplus.
pub(super) fn step_sizes(
    p: &Parts<'_, '_>,
    delta: &Tensor,
    bias: Option<&Tensor>,
    has_softplus: bool,
) -> Result<Tensor> {
    let delta = match bias {
        Some(bias) => p.binary(BinaryKind::Add, delta, bias)?,
        None => delta.clone(),
    };
    if has_softplus { softplus(p, &delta) } else { Ok(delta) }
}

/// `ln(1 + e^x)`, without overflow: `max(x, 0) + ln(1 + e^−|x|)`.
fn softplus(p: &Parts<'_, '_>, x: &Tensor) -> Result<Tensor> {
    let rest = p.unary(UnaryKind::Abs, x)?;
    p.unary_in_place(UnaryKind::Neg, &rest)?;
    p.unary_in_place(UnaryKind::Exp, &rest)?;
    p.scalar_in_place(BinaryKind::Add, &rest, 1.0)?;
    p.unary_in_place(UnaryKind::Log, &rest)?;
    let positive = p.scalar(BinaryKind::Max, x, 0.0)?;
    p.binary_in_place(BinaryKind::Add, &positive, &rest)?;
    Ok(positive)
}
