//! The logarithm of softmax of rows: the vendor's kernel, and three behind it for rows of −∞ alone.

use super::Native;
use super::softmax::{plan_rows, scaled, without_weight};
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::Call;
use portolan_ops::norm::LogSoftmaxSpec;
use portolan_ops::{DType, Result};

impl Native for LogSoftmaxSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        plan_rows(soc, self.x(), self.out())?;
        soc.has("aclnnLogSoftmaxGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (x, out) = (op.require("x")?, op.require("out")?);
        let x = scaled(run, &x, op.spec().scale())?;
        let empty = without_weight(run, &x)?;
        let (from, to) = (run.tensor(&x)?, run.tensor(&out)?);
        aclnn!(run, aclnnLogSoftmaxGetWorkspaceSize, aclnnLogSoftmax, from, -1i64, to)?;
        let (mask, nothing) = (run.tensor(&empty)?, run.scalar(DType::F32, f64::NEG_INFINITY)?);
        aclnn!(
            run,
            aclnnInplaceMaskedFillScalarGetWorkspaceSize,
            aclnnInplaceMaskedFillScalar,
            to,
            mask,
            nothing
        )
    }
}
