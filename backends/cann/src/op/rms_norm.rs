//! Root-mean-square norms of whole rows: one kernel, and a row of ones where the call has no weight.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::{Call, Tensor};
use portolan_ops::norm::RmsNormSpec;
use portolan_ops::{DType, Result, Unsupported};

impl Native for RmsNormSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if self.weight().is_some_and(|weight| weight.rank() > 1) {
            return Err(Unsupported::Shape("one weight for all rows"));
        }
        soc.compute_all([self.x()])?;
        soc.has("aclnnRmsNormGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
        let weight = gamma(run, op.tensor("weight"), x.dtype(), spec.n())?;
        let roots = statistics(run, &x)?;
        // The kernel is not told that it works in place.
        let in_place = x.buffer().same(out.buffer());
        let result = if in_place { run.scratch(out.dtype(), out.dims())? } else { out.clone() };
        let eps = f64::from(spec.eps());
        let [from, weight] = [run.tensor(&x)?, run.tensor(&weight)?];
        let [to, roots] = [run.tensor(&result)?, run.tensor(&roots)?];
        aclnn!(run, aclnnRmsNormGetWorkspaceSize, aclnnRmsNorm, from, weight, eps, to, roots)?;
        if in_place { run.copy(&result, &out) } else { Ok(()) }
    }
}

/// The weight, or one that changes nothing.
pub(super) fn gamma(run: &Run<'_, '_>, weight: Option<Tensor>, dtype: DType, n: usize) -> Result<Tensor> {
    weight.map_or_else(|| run.full(dtype, &[n], 1.0), Ok)
}

/// Where the kernel leaves the reciprocal roots, one a row, which nobody reads.
pub(super) fn statistics(run: &Run<'_, '_>, x: &Tensor) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = 1;
    }
    run.scratch(DType::F32, &dims)
}
