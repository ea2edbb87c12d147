//! Layer norms: one kernel.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::NONE;
use portolan_core::Call;
use portolan_ops::Result;
use portolan_ops::norm::LayerNormSpec;

impl Native for LayerNormSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.compute_all([self.x()])?;
        soc.has("aclnnLayerNormGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
        let in_place = x.buffer().same(out.buffer());
        let result = if in_place { run.scratch(out.dtype(), out.dims())? } else { out.clone() };
        let weight = op.tensor("weight").map(|weight| run.tensor(&weight)).transpose()?;
        let bias = op.tensor("bias").map(|bias| run.tensor(&bias)).transpose()?;
        let (eps, row) = (f64::from(spec.eps()), run.ints(&[spec.n() as i64])?);
        let [from, to] = [run.tensor(&x)?, run.tensor(&result)?];
        aclnn!(
            run,
            aclnnLayerNormGetWorkspaceSize,
            aclnnLayerNorm,
            from,
            row,
            weight,
            bias,
            eps,
            to,
            NONE,
            NONE
        )?;
        if in_place { run.copy(&result, &out) } else { Ok(()) }
    }
}
