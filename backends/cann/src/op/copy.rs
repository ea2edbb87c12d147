//! Copies between layouts: one kernel, which moves bits.

use super::Native;
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::Call;
use portolan_ops::Result;
use portolan_ops::kernel::CopySpec;

impl Native for CopySpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.moves([self.x(), self.out()])
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        run.copy(&op.require("x")?, &op.require("out")?)
    }
}
