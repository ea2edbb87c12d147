//! Residual sum and norm: one kernel, which may write the sum over the residual it read.

use super::Native;
use super::rms_norm::{gamma, statistics};
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::Call;
use portolan_ops::norm::AddRmsNormSpec;
use portolan_ops::{Result, Unsupported};

impl Native for AddRmsNormSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if self.residual().dtype() != self.x().dtype() {
            return Err(Unsupported::DType(self.residual().dtype()));
        }
        soc.compute_all([self.x()])?;
        soc.has("aclnnAddRmsNormGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
        let residual = op.require("residual")?;
        let weight = gamma(run, op.tensor("weight"), x.dtype(), spec.n())?;
        let roots = statistics(run, &x)?;
        let eps = f64::from(spec.eps());
        let [roots, weight] = [run.tensor(&roots)?, run.tensor(&weight)?];
        // A row is read whole before its results are written, which is what the vendor's own form in place relies on.
        let [a, b, y] = [run.tensor(&residual)?, run.tensor(&x)?, run.tensor(&out)?];
        aclnn!(run, aclnnAddRmsNormGetWorkspaceSize, aclnnAddRmsNorm, a, b, weight, eps, y, roots, a)
    }
}
