//! One of two operands by a condition: one kernel.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use portolan_core::Call;
use portolan_ops::Result;
use portolan_ops::kernel::SelectSpec;

impl Native for SelectSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.moves([self.a(), self.b(), self.out()])
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let cond = run.tensor(&op.require("cond")?)?;
        let [a, b, out] = [op.require("a")?, op.require("b")?, op.require("out")?];
        let [a, b, out] = [run.bits(&a)?, run.bits(&b)?, run.bits(&out)?];
        aclnn!(run, aclnnSWhereGetWorkspaceSize, aclnnSWhere, cond, a, b, out)
    }
}
