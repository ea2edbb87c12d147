//! Softmax from maxima, differences, exponentials and sums.

use super::begin;
use super::parts::Parts;
use crate::call::{Binary, Softmax};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, UnaryKind};
use portolan_ops::{Result, Unsupported};

/// In f32: scale, subtract the row's maximum, exponentiate, divide by the sum.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn softmax(l: &Launch<'_>, op: &Softmax, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let Exponentials { weights, sum, .. } = exponentials(&p, &op.require("x")?, op.spec().scale())?;
    let out = op.require("out")?;
    p.result(&out, |out| p.run(Binary::new(BinaryKind::Div, &weights, &sum, out)?))
}

/// Rows scaled and shifted to a maximum of 0, their exponentials, and the sums of those.
pub(super) struct Exponentials {
    pub(super) shifted: Tensor,
    pub(super) weights: Tensor,
    pub(super) sum: Tensor,
}

/// The exponentials of rows, in f32.
pub(super) fn exponentials(p: &Parts<'_, '_>, x: &Tensor, scale: f32) -> Result<Exponentials> {
    let last = x.dims().len().saturating_sub(1);
    let mut x = p.f32(x)?;
    if scale != 1.0 {
        x = p.scalar(BinaryKind::Mul, &x, f64::from(scale))?;
    }
    let largest = p.reduce(ReduceKind::Max, &x, last)?;
    // A row of nothing but −∞ would give −∞ − −∞; its weights are e^(−∞ − 0) = 0, their sum counts as 1.
    let masked = p.compare_scalar(CompareKind::Eq, &largest, f64::NEG_INFINITY)?;
    let largest = p.replace(&masked, 0.0, &largest)?;
    let shifted = p.binary(BinaryKind::Sub, &x, &largest)?;
    let weights = p.unary(UnaryKind::Exp, &shifted)?;
    let sum = p.reduce(ReduceKind::Sum, &weights, last)?;
    let sum = p.replace(&masked, 1.0, &sum)?;
    Ok(Exponentials { shifted, weights, sum })
}
