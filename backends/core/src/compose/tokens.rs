//! Steps of sequences: what compositions of state-space operators read and write their tokens by.
//!
//! Sequences beside one another are read as they lie. Those one behind the other become a rectangle of sequences and
//! steps, a run of steps at a time; a step that a sequence does not have is marked, and leaves its state alone.

use super::parts::Parts;
use super::ragged::Ragged;
use crate::call::Select;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::attention::LensSpec;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind};

pub(super) struct Tokens {
    ragged: Option<Ragged>,
    steps: usize,
    /// Whether there may be tokens behind the last sequence.
    rest: bool,
}

impl Tokens {
    /// `tokens` of each sequence, or those that `lens` gives of `tokens` of all together.
    pub(super) fn new(p: &Parts<'_, '_>, lens: Option<(&LensSpec, Tensor)>, tokens: usize) -> Result<Self> {
        let Some((spec, lens)) = lens else { return Ok(Self { ragged: None, steps: tokens, rest: false }) };
        let steps = if spec.count() == 0 { 0 } else { tokens.min(spec.max() as usize) };
        let ragged = Ragged::new(p, &lens, &lens, steps)?;
        Ok(Self { ragged: Some(ragged), steps, rest: spec.sum() != Some(tokens as u64) })
    }

    /// Steps of the longest sequence, by what is known before the launch.
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Steps `first..first + count` of `x`, `[sequences, count, ..]`; 0 where a sequence has no such step.
    pub(super) fn part(&self, p: &Parts<'_, '_>, x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
        match &self.ragged {
            None => x.narrow(1, first, count),
            Some(ragged) => p.gather(&x.select(0, 0)?, 0, &ragged.token.narrow(1, first, count)?),
        }
    }

    /// Writes steps `first..first + count` of `out`.
    pub(super) fn store(
        &self,
        p: &Parts<'_, '_>,
        y: &Tensor,
        out: &Tensor,
        [first, count]: [usize; 2],
    ) -> Result<()> {
        let Some(ragged) = &self.ragged else { return p.store(y, &out.narrow(1, first, count)?) };
        let token = ragged.token.narrow(1, first, count)?;
        p.scatter_in_place(&out.select(0, 0)?, &token, &p.cast(y, out.dtype())?)
    }

    /// `x`, whose first dimension is sequences and whose second is `count` steps (if they are more than one), with one
    /// number in place of the steps that a sequence does not have.
    pub(super) fn only(
        &self,
        p: &Parts<'_, '_>,
        x: Tensor,
        [first, count]: [usize; 2],
        otherwise: f64,
    ) -> Result<Tensor> {
        let Some(ragged) = &self.ragged else { return Ok(x) };
        let exists = ragged.exists.narrow(1, first, count)?;
        let mut dims = vec![1; x.dims().len()];
        dims[..2].copy_from_slice(exists.dims());
        p.select_or(&exists.reshape(&dims)?, &x, otherwise)
    }

    /// Of `rows` `[sequences, before + count, ..]`, whose first `before` lie before step `first`, the `before` rows behind
    /// each sequence's last step up to `first + count`.
    pub(super) fn behind(
        &self,
        p: &Parts<'_, '_>,
        rows: &Tensor,
        before: usize,
        [first, count]: [usize; 2],
    ) -> Result<Tensor> {
        let Some(ragged) = &self.ragged else { return rows.narrow(1, count, before) };
        let (sequences, all) = (rows.dims()[0], rows.dims()[1]);
        let taken = p.scalar(BinaryKind::Sub, &ragged.q_lens, first as f64)?;
        p.scalar_in_place(BinaryKind::Max, &taken, 0.0)?;
        p.scalar_in_place(BinaryKind::Min, &taken, count as f64)?;
        let start = p.iota(sequences)?.reshape(&[sequences, 1])?;
        p.scalar_in_place(BinaryKind::Mul, &start, all as f64)?;
        p.binary_in_place(BinaryKind::Add, &taken, &start)?;
        let index = p.binary(BinaryKind::Add, &taken, &p.iota(before)?)?;
        p.gather(&rows.reshape(&[&[sequences * all], &rows.dims()[2..]].concat())?, 0, &index)
    }

    /// Writes 0 behind the last sequence: last of all, since `out` may be what was read.
    pub(super) fn finish(&self, p: &Parts<'_, '_>, out: &Tensor) -> Result<()> {
        let (Some(ragged), true) = (&self.ragged, self.rest) else { return Ok(()) };
        let rows = out.select(0, 0)?;
        let total = p.reduce(ReduceKind::Sum, &ragged.q_lens, 0)?.reshape(&[1])?;
        let inside = p.compare(CompareKind::Lt, &p.iota(rows.dims()[0])?, &total)?;
        let mut dims = vec![1; rows.dims().len()];
        dims[0] = rows.dims()[0];
        let nothing = p.full(out.dtype(), &[], 0.0)?;
        p.run(Select::new(&inside.reshape(&dims)?, &rows, &nothing, &mut rows.clone())?)
    }
}
