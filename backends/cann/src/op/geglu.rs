//! Gated units with GELU over the halves of one tensor: one kernel.

use super::Native;
use super::swiglu::plan_halves;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::Call;
use portolan_ops::Result;
use portolan_ops::activation::{GegluSpec, GeluKind};

impl Native for GegluSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        plan_halves(soc, self.gate_up(), self.up())?;
        soc.has("aclnnGeGluV3GetWorkspaceSize")
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let out = op.require("out")?;
        let activated = run.scratch(out.dtype(), out.dims())?;
        let (from, to) = (run.tensor(&op.require("gate_up")?)?, run.tensor(&out)?);
        let approximate = match op.spec().kind() {
            GeluKind::Erf => 0i64,
            GeluKind::Tanh => 1,
        };
        let (last, gate_is_left) = (-1i64, true);
        let activated = run.tensor(&activated)?;
        aclnn!(
            run,
            aclnnGeGluV3GetWorkspaceSize,
            aclnnGeGluV3,
            from,
            last,
            approximate,
            gate_is_left,
            to,
            activated
        )
    }
}
