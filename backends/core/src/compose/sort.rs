//! Sort as the selection of all elements.

use super::begin;
use super::parts::Parts;
use crate::call::{Gather, Sort, TopK};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::sort::SortOrder;
use portolan_ops::{DType, Result, Unsupported};

/// top_k with k = n is a stable descending sort. Ascending is that of the reversed row, read backwards: of
/// equal elements the last place then comes first, and is the first again when reversed.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn sort(l: &Launch<'_>, op: &Sort, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let x = op.require("x")?;
    let given = |name, dtype| match op.tensor(name) {
        Some(tensor) => Ok(tensor),
        None => p.scratch(dtype, x.dims()),
    };
    if op.spec().order() == SortOrder::Descending {
        let (mut values, mut indices) = (given("values", x.dtype())?, given("indices", DType::I32)?);
        return p.run(TopK::new(&x, &mut values, &mut indices)?);
    }
    let (n, last) = (op.spec().n(), x.dims().len().saturating_sub(1));
    let backwards = p.iota(n)?;
    mirror(&p, &backwards, n)?;
    let x = p.gather(&x, last, &backwards)?;
    let (mut values, mut indices) = (p.scratch(x.dtype(), x.dims())?, p.scratch(DType::I32, x.dims())?);
    p.run(TopK::new(&x, &mut values, &mut indices)?)?;
    if let Some(mut out) = op.tensor("values") {
        p.run(Gather::slices(&values, last, &backwards, &mut out)?)?;
    }
    if let Some(mut out) = op.tensor("indices") {
        mirror(&p, &indices, n)?;
        p.run(Gather::slices(&indices, last, &backwards, &mut out)?)?;
    }
    Ok(())
}

/// Replaces each place of a row of n by the one as far from its other end.
fn mirror(p: &Parts<'_, '_>, places: &Tensor, n: usize) -> Result<()> {
    p.unary_in_place(UnaryKind::Neg, places)?;
    p.scalar_in_place(BinaryKind::Add, places, n as f64 - 1.0)
}
