//! Grouped products as one layer an expert: the device alone knows which rows are whose, so each layer takes all
//! of them and keeps its own.

use super::begin;
use super::parts::Parts;
use crate::call::{GroupedGemm, Linear};
use crate::experts::Experts;
use crate::launch::Launch;
use crate::op::{Call, Dispatch};
use crate::tensor::Tensor;
use portolan_ops::kernel::CompareKind;
use portolan_ops::moe::{ExpertNames, ExpertsSpec};
use portolan_ops::{Access, DType, OpError, Result, Unsupported};

/// Linear and select for each expert.
///
/// # Errors
/// As the parts; `Unsupported` for packed weights and where the stream denies compositions.
pub fn grouped_gemm(l: &Launch<'_>, op: &GroupedGemm, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let (x, out) = (op.require("x")?, op.require("out")?);
    let weight = experts_of(op, spec.weight(), &ExpertNames::WEIGHT)?;
    let layer = |expert: usize, x: &Tensor, out: &mut Tensor| -> Result<()> {
        let layer = Linear::new(x, &weight.expert(expert)?, out)?.act_quant(spec.act_quant())?;
        p.run(match op.tensor("bias") {
            Some(bias) => layer.bias(&bias.select(0, expert)?)?,
            None => layer,
        })
    };
    let experts = spec.weight().count();
    let Some(offsets) = op.tensor("offsets") else {
        let counts = op.require("counts")?;
        let (room, n) = (x.dims()[1], spec.weight().n());
        let place = p.iota(room)?.reshape(&[room, 1])?;
        for expert in 0..experts {
            let mut all = p.scratch(out.dtype(), &[room, n])?;
            layer(expert, &x.select(0, expert)?, &mut all)?;
            let count = counts.narrow(0, expert, 1)?;
            // A count beyond the room is that of an expert without rows.
            let legal = p.compare_scalar(CompareKind::Le, &count, room as f64)?;
            let count = p.select_or(&legal, &count, 0.0)?;
            let own = p.compare(CompareKind::Lt, &place, &count)?;
            p.store(&p.select_or(&own, &all, 0.0)?, &out.select(0, expert)?)?;
        }
        return Ok(());
    };
    let (rows, n) = (x.dims()[0], spec.weight().n());
    let place = p.iota(rows)?.reshape(&[rows, 1])?;
    let mut kept = p.full(out.dtype(), &[rows, n], 0.0)?;
    for expert in 0..experts {
        let mut all = p.scratch(out.dtype(), &[rows, n])?;
        layer(expert, &x, &mut all)?;
        let own = own_rows(&p, &place, &offsets.narrow(0, expert, 2)?, rows)?;
        kept = p.select(&own, &all, &kept)?;
    }
    p.store(&kept, &out)
}

/// Which places lie between two offsets; none where those leave the rows.
fn own_rows(p: &Parts<'_, '_>, place: &Tensor, offsets: &Tensor, rows: usize) -> Result<Tensor> {
    let (first, end) = (offsets.narrow(0, 0, 1)?, offsets.narrow(0, 1, 1)?);
    let none = |legal: &Tensor, offset: &Tensor, otherwise: f64| p.select_or(legal, offset, otherwise);
    let end = none(&p.compare_scalar(CompareKind::Le, &end, rows as f64)?, &end, 0.0)?;
    let first = none(&p.compare_scalar(CompareKind::Ge, &first, 0.0)?, &first, rows as f64)?;
    let from = p.compare(CompareKind::Ge, place, &first)?;
    let below = p.compare(CompareKind::Lt, place, &end)?;
    p.select(&from, &below, &p.full(DType::Bool, &[], 0.0)?)
}

/// The stack of weights of a call, by its names.
pub(super) fn experts_of<C: Dispatch>(
    op: &Call<C>,
    spec: &ExpertsSpec,
    names: &ExpertNames,
) -> Result<Experts> {
    let mut tensors = Vec::new();
    spec.visit(names, Access::Read, &mut |part| tensors.push(op.tensor(part.name)));
    let tensors: Option<Vec<Tensor>> = tensors.into_iter().collect();
    let tensors = tensors.ok_or_else(|| OpError::internal(op.spec().name(), "a weight has no tensor"))?;
    Ok(Experts::of_parts(spec.clone(), tensors))
}
