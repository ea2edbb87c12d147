//! Sampling from sorting, running sums and comparisons; every step of the contract in its order.

use super::begin;
use super::parts::Parts;
use crate::call::{Reduce, Sample, TopK};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, UnaryKind};
use portolan_ops::sample::SampleSpec;
use portolan_ops::{DType, Result, Unsupported};

/// The largest f32 below 1.
const BELOW_ONE: f64 = 1.0 - 1.0 / 16_777_216.0;

/// Penalty by gather and scatter; the place of the maximum where that decides; else weights, truncated by a
/// threshold and a count, and the first place where their running sum passes the uniform's share.
///
/// # Errors
/// As the parts; `Unsupported` for more logits than an i32 names and where the stream denies compositions.
pub fn sample(l: &Launch<'_>, op: &Sample, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (spec, out) = (op.spec(), op.require("out")?);
    let batch = spec.batch();
    let mut logits = p.f32(&op.require("logits")?)?;
    if let Some(history) = op.tensor("history").filter(|h| h.numel() > 0) {
        logits = penalised(&p, spec, &logits, &history)?;
    }
    if spec.temperature() == 0.0 {
        return p.run(Reduce::new(ReduceKind::ArgMax, &logits, &[1], false, &mut out.clone())?);
    }
    let greedy = p.reduce(ReduceKind::ArgMax, &logits, 1)?;
    let largest = p.reduce(ReduceKind::Max, &logits, 1)?;
    // Where the largest is not finite the weights are meaningless, and not used.
    let finite = p.unary(UnaryKind::IsFinite, &largest)?;
    let weights = p.binary(BinaryKind::Sub, &logits, &largest)?;
    p.scalar_in_place(BinaryKind::Div, &weights, f64::from(spec.temperature()))?;
    p.unary_in_place(UnaryKind::Exp, &weights)?;
    let weights = match survivors(&p, spec, &weights)? {
        Some(kept) => p.select_or(&kept, &weights, 0.0)?,
        None => weights,
    };
    let uniforms = op.require("uniforms")?.reshape(&[batch, 1])?;
    let drawn = draw(&p, &weights, &uniforms)?;
    let token = p.select(&finite, &drawn, &greedy)?;
    p.store(&token.reshape(&[batch])?, &out)
}

/// The logits with those of the history's tokens penalised, each once.
fn penalised(p: &Parts<'_, '_>, spec: &SampleSpec, logits: &Tensor, history: &Tensor) -> Result<Tensor> {
    let (batch, vocab, penalty) = (spec.batch(), spec.vocab(), f64::from(spec.repetition_penalty()));
    let flat = p.f32_copy(logits, &[batch * vocab])?;
    let known = p.binary(
        BinaryKind::And,
        &p.compare_scalar(CompareKind::Ge, history, 0.0)?,
        &p.compare_scalar(CompareKind::Lt, history, vocab as f64)?,
    )?;
    let row = p.scalar(BinaryKind::Mul, &p.iota(batch)?, vocab as f64)?.reshape(&[batch, 1])?;
    let place = p.select_or(&known, &p.binary(BinaryKind::Add, history, &row)?, -1.0)?;
    // From the untouched logits: a token seen twice is written twice, with the same number.
    let old = p.gather(&flat, 0, &place)?;
    let positive = p.compare_scalar(CompareKind::Gt, &old, 0.0)?;
    let divided = p.scalar(BinaryKind::Div, &old, penalty)?;
    p.scalar_in_place(BinaryKind::Mul, &old, penalty)?;
    p.scatter_in_place(&flat, &place, &p.select(&positive, &divided, &old)?)?;
    flat.reshape(&[batch, vocab])
}

/// Which weights survive top k, top p and min p; `None` for all.
///
/// Only the sorted *values* are used, which no order of equal ones changes: a row keeps what is above the
/// smallest survivor, and as many equal to it as are left, the first in index order.
fn survivors(p: &Parts<'_, '_>, spec: &SampleSpec, weights: &Tensor) -> Result<Option<Tensor>> {
    let (batch, vocab) = (spec.batch(), spec.vocab());
    let k = if spec.top_k() == 0 { vocab } else { spec.top_k().min(vocab) };
    let mut kept = None;
    if k < vocab || spec.top_p() < 1.0 {
        let mut sorted = p.scratch(DType::F32, &[batch, k])?;
        let mut places = p.scratch(DType::I32, &[batch, k])?;
        p.run(TopK::new(weights, &mut sorted, &mut places)?)?;
        let count = |cond: &Tensor| p.reduce(ReduceKind::Sum, &p.cast(cond, DType::I32)?, 1);
        let number = match spec.top_p() < 1.0 {
            true => {
                let sums = p.running_sum(&sorted, 1)?;
                let wanted =
                    p.scalar(BinaryKind::Mul, &sums.narrow(1, k - 1, 1)?, f64::from(spec.top_p()))?;
                // All before the first whose sum is enough, and that one.
                let number = count(&p.compare(CompareKind::Lt, &sums, &wanted)?)?;
                p.scalar_in_place(BinaryKind::Add, &number, 1.0)?;
                p.scalar(BinaryKind::Min, &number, k as f64)?
            }
            false => p.full(DType::I32, &[batch, 1], k as f64)?,
        };
        let last = p.scalar(BinaryKind::Sub, &number, 1.0)?;
        let smallest = p.gather_elements(&sorted, 1, &last)?;
        let above = count(&p.compare(CompareKind::Gt, &sorted, &smallest)?)?;
        let left = p.binary(BinaryKind::Sub, &number, &above)?;
        let equal = p.compare(CompareKind::Eq, weights, &smallest)?;
        let rank = p.running_sum(&p.cast(&equal, DType::I32)?, 1)?;
        let first = p.binary(BinaryKind::And, &equal, &p.compare(CompareKind::Le, &rank, &left)?)?;
        kept = Some(p.binary(BinaryKind::Or, &p.compare(CompareKind::Gt, weights, &smallest)?, &first)?);
    }
    if spec.min_p() > 0.0 {
        let likely = p.compare_scalar(CompareKind::Ge, weights, f64::from(spec.min_p()))?;
        kept = Some(match kept {
            Some(kept) => p.binary(BinaryKind::And, &kept, &likely)?,
            None => likely,
        });
    }
    Ok(kept)
}

/// The first place whose running sum exceeds `u` times the whole; the last of positive weight if none does.
fn draw(p: &Parts<'_, '_>, weights: &Tensor, uniforms: &Tensor) -> Result<Tensor> {
    let vocab = weights.dims()[1];
    let sums = p.running_sum(weights, 1)?;
    let below_one = p.compare_scalar(CompareKind::Lt, uniforms, 1.0)?;
    let share = p.select_or(&below_one, uniforms, BELOW_ONE)?;
    p.scalar_in_place(BinaryKind::Max, &share, 0.0)?;
    p.binary_in_place(BinaryKind::Mul, &share, &sums.narrow(1, vocab - 1, 1)?)?;
    let positive = p.compare_scalar(CompareKind::Gt, weights, 0.0)?;
    let reached = p.compare(CompareKind::Gt, &sums, &share)?;
    // A running sum need not grow monotonically in every rounding: only places with a weight count.
    let reached = p.binary(BinaryKind::And, &reached, &positive)?;
    let first = p.reduce(ReduceKind::ArgMax, &p.cast(&reached, DType::I32)?, 1)?;
    let last = p.reduce(ReduceKind::Max, &p.select_or(&positive, &p.iota(vocab)?, 0.0)?, 1)?;
    p.select(&p.reduce(ReduceKind::Any, &reached, 1)?, &first, &last)
}
