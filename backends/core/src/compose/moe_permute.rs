//! Permutation by experts from a running count of each expert's tokens, a scatter and a gather.

use super::begin;
use crate::call::{Fill, Gather, MoePermute, Scan};
use crate::launch::Launch;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, ScanKind};
use portolan_ops::{DType, Result, Unsupported};

/// One column an expert, one row a place of a token: the running sum down a column numbers an expert's rows.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn moe_permute(l: &Launch<'_>, op: &MoePermute, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let (tokens, k, experts) = (spec.tokens(), spec.top_k(), spec.num_experts());
    let (pairs, out) = (tokens * k, op.require("out")?);
    let ids = p.scratch(DType::I32, &[tokens, k])?;
    p.store(&op.require("expert_ids")?, &ids)?;
    let ids = ids.reshape(&[pairs, 1])?;
    let is_of = p.cast(&p.compare(CompareKind::Eq, &ids, &p.iota(experts)?)?, DType::I32)?;

    let all = p.reduce(ReduceKind::Sum, &is_of, 0)?.reshape(&[experts])?;
    // No expert has more rows than an i32 counts.
    let capacity = spec.capacity().map(|capacity| capacity.min(i32::MAX as usize) as f64);
    let kept = match capacity {
        Some(capacity) => p.scalar(BinaryKind::Min, &all, capacity)?,
        None => all.clone(),
    };
    if let Some(dropped) = op.tensor("dropped") {
        p.store(&p.binary(BinaryKind::Sub, &all, &kept)?, &dropped)?;
    }
    let first = match (op.tensor("offsets"), capacity) {
        (Some(offsets), _) => {
            p.run(Fill::new(&mut offsets.narrow(0, 0, 1)?, 0.0)?)?;
            p.run(Scan::cumulative(ScanKind::Sum, &kept, 0, &mut offsets.narrow(0, 1, experts)?)?)?;
            offsets.narrow(0, 0, experts)?
        }
        (None, capacity) => {
            p.store(&kept, &op.require("counts")?)?;
            let first = p.iota(experts)?;
            p.scalar_in_place(BinaryKind::Mul, &first, capacity.unwrap_or_default())?;
            first
        }
    };

    // Both gathers give 0 for padding, whose row so becomes 0 + 0 − 1.
    let place = p.gather_elements(&p.running_sum(&is_of, 0)?, 1, &ids)?;
    p.scalar_in_place(BinaryKind::Sub, &place, 1.0)?;
    let mut row = p.binary(BinaryKind::Add, &p.gather(&first, 0, &ids)?, &place)?;
    if let Some(capacity) = capacity {
        row = p.replace(&p.compare_scalar(CompareKind::Ge, &place, capacity)?, -1.0, &row)?;
    }
    p.store(&row.reshape(&[tokens, k])?, &op.require("row_map")?)?;

    let rows = out.dims()[..out.dims().len() - 1].to_vec();
    let source = p.full(DType::I32, &[rows.iter().product()], -1.0)?;
    let token = p.scratch(DType::I32, &[tokens, k])?;
    p.store(&p.iota(tokens)?.reshape(&[tokens, 1])?.broadcast_to(&[tokens, k])?, &token)?;
    p.scatter_in_place(&source, &row.reshape(&[pairs])?, &token.reshape(&[pairs])?)?;
    p.run(Gather::slices(&op.require("x")?, 0, &source.reshape(&rows)?, &mut out.clone())?)
}
