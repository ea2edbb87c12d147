//! Reductions over dimensions: one kernel for most; products fold halves, the place of the least comes from a stable sort,
//! whose order puts no number last as the contract does.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::code;
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::{ReduceKind, ReduceSpec};
use portolan_ops::{DType, OpError, Result};

impl Native for ReduceSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.compute_all([self.x(), self.out()])
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
        let dims: Vec<i64> = (0..x.dims().len()).filter(|&d| spec.is_reduced(d)).map(|d| d as i64).collect();
        let keep = spec.keep_dims();
        match spec.kind() {
            ReduceKind::Any if spec.count() == 0 => run.fill(&out, 0.0),
            ReduceKind::All if spec.count() == 0 => run.fill(&out, 1.0),
            ReduceKind::Sum => {
                let ends = (run.tensor(&x)?, run.tensor(&out)?);
                let (dims, dtype) = (run.ints(&dims)?, number(op, &out)?);
                aclnn!(run, aclnnReduceSumGetWorkspaceSize, aclnnReduceSum, ends.0, dims, keep, dtype, ends.1)
            }
            ReduceKind::Mean => {
                let ends = (run.tensor(&x)?, run.tensor(&out)?);
                let (dims, dtype) = (run.ints(&dims)?, number(op, &out)?);
                aclnn!(run, aclnnMeanGetWorkspaceSize, aclnnMean, ends.0, dims, keep, dtype, ends.1)
            }
            ReduceKind::Max | ReduceKind::Any => {
                let (dims, ends) = (run.ints(&dims)?, (run.tensor(&x)?, run.tensor(&out)?));
                aclnn!(run, aclnnAmaxGetWorkspaceSize, aclnnAmax, ends.0, dims, keep, ends.1)
            }
            ReduceKind::Min | ReduceKind::All => {
                let (dims, ends) = (run.ints(&dims)?, (run.tensor(&x)?, run.tensor(&out)?));
                aclnn!(run, aclnnAminGetWorkspaceSize, aclnnAmin, ends.0, dims, keep, ends.1)
            }
            ReduceKind::ArgMax => {
                let ends = (run.tensor(&x)?, run.tensor(&out)?);
                aclnn!(run, aclnnArgMaxGetWorkspaceSize, aclnnArgMax, ends.0, dims[0], keep, ends.1)
            }
            ReduceKind::ArgMin => place_of_least(run, &x, dims[0], keep, &out),
            ReduceKind::Prod => product(run, op, &x, &out),
        }
    }
}

/// The vendor's number of the result's type.
fn number(op: &Call<ReduceSpec>, out: &Tensor) -> Result<i32> {
    code(out.dtype()).ok_or_else(|| OpError::internal(op.spec().kind().name(), "a type without a number"))
}

fn place_of_least(run: &Run<'_, '_>, x: &Tensor, dim: i64, keep: bool, out: &Tensor) -> Result<()> {
    let (values, places) = (run.scratch(x.dtype(), x.dims())?, run.scratch(DType::I64, x.dims())?);
    let [from, to, at] = [run.tensor(x)?, run.tensor(&values)?, run.tensor(&places)?];
    let (stable, descending) = (true, false);
    aclnn!(run, aclnnSortGetWorkspaceSize, aclnnSort, from, stable, dim, descending, to, at)?;
    let first = match keep {
        true => places.narrow(dim as usize, 0, 1)?,
        false => places.select(dim as usize, 0)?,
    };
    run.cast(&first, out)
}

/// Multiplies one half of what is left into the other until one is left: as many steps as the count has bits.
fn product(run: &Run<'_, '_>, op: &Call<ReduceSpec>, x: &Tensor, out: &Tensor) -> Result<()> {
    let spec = op.spec();
    let (kept, reduced): (Vec<usize>, Vec<usize>) = (0..x.dims().len()).partition(|&d| !spec.is_reduced(d));
    let (mut left, results) = (spec.count(), out.numel());
    if left == 0 {
        return run.fill(out, 1.0);
    }
    let ordered = x.permute(&[reduced, kept].concat())?;
    let wide = if x.dtype().is_float() { DType::F32 } else { x.dtype() };
    let factors = run.scratch(wide, ordered.dims())?;
    run.store(&ordered, &factors)?;
    let factors = factors.reshape(&[left, results])?;
    while left > 1 {
        let half = left / 2;
        let low = factors.narrow(0, 0, half)?;
        run.mul(&low, &factors.narrow(0, left - half, half)?, &low)?;
        left -= half;
    }
    run.store(&factors.narrow(0, 0, 1)?.reshape(out.dims())?, out)
}
