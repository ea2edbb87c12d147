//! Softmax of rows: the vendor's kernel, and three behind it for rows of −∞ alone, which it makes no numbers of.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::{Call, Tensor};
use portolan_ops::norm::SoftmaxSpec;
use portolan_ops::{DType, Result, TensorSpec, Unsupported};

impl Native for SoftmaxSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        plan_rows(soc, self.x(), self.out())?;
        soc.has("aclnnSoftmaxGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (x, out) = (op.require("x")?, op.require("out")?);
        let x = scaled(run, &x, op.spec().scale())?;
        let empty = without_weight(run, &x)?;
        let (from, to) = (run.tensor(&x)?, run.tensor(&out)?);
        aclnn!(run, aclnnSoftmaxGetWorkspaceSize, aclnnSoftmax, from, -1i64, to)?;
        run.zero_where(&empty, &out)
    }
}

/// Whether the vendor's kernels of rows take such operands.
pub(super) fn plan_rows(soc: &Soc<'_>, x: &TensorSpec, out: &TensorSpec) -> Plan {
    match x.dtype() == out.dtype() {
        true => soc.compute_all([x]),
        false => Err(Unsupported::DType(out.dtype())),
    }
}

/// The numbers times a factor: in f32, or as they are.
pub(super) fn scaled(run: &Run<'_, '_>, x: &Tensor, scale: f32) -> Result<Tensor> {
    if scale == 1.0 {
        return Ok(x.clone());
    }
    let wide = run.typed(x, DType::F32)?;
    let out = run.scratch(DType::F32, x.dims())?;
    run.muls(&wide, f64::from(scale), &out)?;
    Ok(out)
}

/// Which rows have no number above −∞: one condition a row.
pub(super) fn without_weight(run: &Run<'_, '_>, x: &Tensor) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let last = dims.len().saturating_sub(1);
    dims[last] = 1;
    let (largest, empty) = (run.scratch(x.dtype(), &dims)?, run.scratch(DType::Bool, &dims)?);
    let (row, keep) = (run.ints(&[last as i64])?, true);
    let [from, to] = [run.tensor(x)?, run.tensor(&largest)?];
    aclnn!(run, aclnnAmaxGetWorkspaceSize, aclnnAmax, from, row, keep, to)?;
    run.is_nothing(&largest, &empty)?;
    Ok(empty)
}
