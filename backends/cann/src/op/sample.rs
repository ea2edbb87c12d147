//! The next token where nothing is drawn: the place of the largest logit. The vendor's sampling draws by noise on every
//! logit and keeps equals at an edge; the contract draws by one number a row, so that is composed.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::Call;
use portolan_ops::sample::SampleSpec;
use portolan_ops::{Result, Unsupported};

impl Native for SampleSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if self.temperature() != 0.0 || self.history().is_some() {
            return Err(Unsupported::NotImplemented);
        }
        soc.compute_all([self.logits()])?;
        soc.has("aclnnArgMaxGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (from, to) = (run.tensor(&op.require("logits")?)?, run.tensor(&op.require("out")?)?);
        let (row, keep) = (1i64, false);
        aclnn!(run, aclnnArgMaxGetWorkspaceSize, aclnnArgMax, from, row, keep, to)
    }
}
