//! Gated units with SiLU over the halves of one tensor: one kernel. Those with a limit and the like are composed.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::Call;
use portolan_ops::activation::SwigluSpec;
use portolan_ops::{Result, TensorSpec, Unsupported};

impl Native for SwigluSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        if self.limit().is_some() || self.alpha() != 1.0 || self.up_offset() != 0.0 {
            return Err(Unsupported::NotImplemented);
        }
        plan_halves(soc, self.gate_up(), self.up())?;
        soc.has("aclnnSwiGluGetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (from, to) = (run.tensor(&op.require("gate_up")?)?, run.tensor(&op.require("out")?)?);
        aclnn!(run, aclnnSwiGluGetWorkspaceSize, aclnnSwiGlu, from, -1i64, to)
    }
}

/// Whether gate and up are the first and the second half of one tensor's rows.
pub(super) fn plan_halves(soc: &Soc<'_>, gate_up: Option<&TensorSpec>, up: &TensorSpec) -> Plan {
    const HALVES: Unsupported = Unsupported::Shape("gate and up are the halves of one tensor");
    let both = gate_up.ok_or(HALVES)?;
    let n = up.shape().last();
    let second = both.narrow(both.rank() - 1, n, n).map_err(|_| HALVES)?;
    if second != *up {
        return Err(HALVES);
    }
    soc.compute_all([both])
}
