//! Softmax from maxima, differences, exponentials and sums.

use super::begin;
use crate::call::{Binary, Softmax};
use crate::launch::Launch;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, UnaryKind};
use portolan_ops::{Result, Unsupported};

/// In f32: scale, subtract the row's maximum, exponentiate, divide by the sum.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn softmax(l: &Launch<'_>, op: &Softmax, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (x, out) = (op.require("x")?, op.require("out")?);
    let last = x.dims().len().saturating_sub(1);
    let mut x = p.f32(&x)?;
    if op.spec().scale() != 1.0 {
        x = p.scalar(BinaryKind::Mul, &x, f64::from(op.spec().scale()))?;
    }
    let largest = p.reduce(ReduceKind::Max, &x, last)?;
    // A row of nothing but −∞ would give −∞ − −∞; its weights are e^(−∞ − 0) = 0, their sum counts as 1.
    let masked = p.compare_scalar(CompareKind::Eq, &largest, f64::NEG_INFINITY)?;
    let largest = p.replace(&masked, 0.0, &largest)?;
    let weights = p.binary(BinaryKind::Sub, &x, &largest)?;
    p.unary_in_place(UnaryKind::Exp, &weights)?;
    let sum = p.reduce(ReduceKind::Sum, &weights, last)?;
    let sum = p.replace(&masked, 1.0, &sum)?;
    p.result(&out, |out| p.run(Binary::new(BinaryKind::Div, &weights, &sum, out)?))
}
