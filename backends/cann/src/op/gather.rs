//! Entries by index: one kernel where no index can be padding; else indices are raised to 0 for it, and what padding
//! read is cleared behind it.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::{Call, Tensor};
use portolan_ops::kernel::{GatherForm, GatherSpec};
use portolan_ops::{DType, Result};

impl Native for GatherSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.moves([self.x(), self.out()])
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, index) = (op.spec(), op.require("index")?);
        rows(run, spec.form(), &op.require("x")?, spec.dim(), &index, &op.require("out")?)
    }
}

/// Entries of `x` along `dim` by `index`; bits of 0 for an index below 0.
pub(super) fn rows(
    run: &Run<'_, '_>,
    form: GatherForm,
    x: &Tensor,
    dim: usize,
    index: &Tensor,
    out: &Tensor,
) -> Result<()> {
    if x.dims()[dim] == 0 {
        // There is nothing that an index other than padding could name.
        return run.zero(out);
    }
    let place = run.scratch(DType::I32, index.dims())?;
    run.at_least(index, 0.0, &place)?;
    let [from, to, at] = [run.bits(x)?, run.bits(out)?, run.tensor(&place)?];
    let dim_number = dim as i64;
    match form {
        GatherForm::Slices => {
            aclnn!(run, aclnnGatherV2GetWorkspaceSize, aclnnGatherV2, from, dim_number, at, to)?;
        }
        GatherForm::Elements => {
            aclnn!(run, aclnnGatherGetWorkspaceSize, aclnnGather, from, dim_number, at, to)?;
        }
    }
    let padding = run.scratch(DType::Bool, index.dims())?;
    run.below(index, 0.0, &padding)?;
    let padding = match form {
        // Behind the index's dimensions come those of a slice.
        GatherForm::Slices => {
            let behind = x.dims().len() - dim - 1;
            padding.reshape(&[index.dims(), &vec![1; behind]].concat())?
        }
        GatherForm::Elements => padding,
    };
    run.zero_where(&padding, out)
}
