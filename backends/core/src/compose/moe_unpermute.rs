//! The way back from experts: for each place of a token a gather, a product and a sum.

use super::begin;
use crate::call::MoeUnpermute;
use crate::launch::Launch;
use portolan_ops::kernel::{BinaryKind, CompareKind};
use portolan_ops::{DType, Result, Unsupported};

/// Places in rising order, so that the order of every sum is the contract's.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn moe_unpermute(l: &Launch<'_>, op: &MoeUnpermute, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let (tokens, width) = (spec.tokens(), spec.y().shape().last());
    let (y, row_map, out) = (op.require("y")?, op.require("row_map")?, op.require("out")?);
    let rows = [spec.y().shape().rows(), width];
    let y = match y.reshape(&rows) {
        Ok(view) => view,
        Err(_) => p.f32_copy(&y, &rows)?,
    };
    let sum = p.full(DType::F32, &[tokens, width], 0.0)?;
    for j in 0..spec.top_k() {
        let row = row_map.select(1, j)?;
        let mut term = p.f32(&p.gather(&y, 0, &row)?)?;
        if let Some(weights) = op.tensor("weights") {
            let none = p.compare_scalar(CompareKind::Lt, &row, 0.0)?;
            let weight = p.replace(&none, 0.0, &weights.select(1, j)?)?.reshape(&[tokens, 1])?;
            term = p.binary(BinaryKind::Mul, &term, &weight)?;
        }
        p.binary_in_place(BinaryKind::Add, &sum, &term)?;
    }
    p.store(&sum, &out)
}
