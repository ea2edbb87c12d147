//! Partial attention merged by weights from their sums' logarithms.

use super::begin;
use crate::call::{Fill, MergeAttention};
use crate::launch::Launch;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, UnaryKind};
use portolan_ops::{Result, Unsupported};

/// In f32: a softmax of the lses along the parts, and the sum of the parts so weighted.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn merge_attention(l: &Launch<'_>, op: &MergeAttention, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (parts, lses) = (op.require("parts")?, op.require("lses")?);
    let (out, lse) = (op.require("out")?, op.tensor("lse"));
    if parts.dims()[0] == 0 {
        p.run(Fill::new(&mut out.clone(), 0.0)?)?;
        return lse.map_or(Ok(()), |lse| p.run(Fill::new(&mut lse.clone(), f64::NEG_INFINITY)?));
    }
    let largest = p.reduce(ReduceKind::Max, &lses, 0)?;
    // Where no part saw a key, −∞ − −∞ would be NaN: there weights are e^(−∞ − 0) = 0.
    let blind = p.compare_scalar(CompareKind::Eq, &largest, f64::NEG_INFINITY)?;
    let largest = p.replace(&blind, 0.0, &largest)?;
    let weights = p.binary(BinaryKind::Sub, &lses, &largest)?;
    p.unary_in_place(UnaryKind::Exp, &weights)?;
    let sum = p.reduce(ReduceKind::Sum, &weights, 0)?;
    if let Some(lse) = lse {
        let logarithm = p.unary(UnaryKind::Log, &sum)?;
        p.binary_in_place(BinaryKind::Add, &logarithm, &largest)?;
        p.store(&logarithm.reshape(lse.dims())?, &lse)?;
    }
    if out.numel() == 0 {
        return Ok(());
    }
    p.binary_in_place(BinaryKind::Div, &weights, &p.replace(&blind, 1.0, &sum)?)?;
    let column = [parts.dims()[0], parts.dims()[1], parts.dims()[2], 1];
    let seen = p.compare_scalar(CompareKind::Ne, &lses, f64::NEG_INFINITY)?.reshape(&column)?;
    // A part that saw no key weighs 0, but 0 · NaN is NaN: what it holds must not count.
    let values = p.select_or(&seen, &p.f32(&parts)?, 0.0)?;
    p.binary_in_place(BinaryKind::Mul, &values, &weights.reshape(&column)?)?;
    p.store(&p.reduce(ReduceKind::Sum, &values, 0)?.reshape(out.dims())?, &out)
}
