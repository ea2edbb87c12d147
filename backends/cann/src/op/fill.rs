//! A constant: one kernel.

use super::Native;
use crate::aclnn::{Plan, Run, Soc};
use portolan_core::Call;
use portolan_ops::kernel::FillSpec;
use portolan_ops::{DType, Result, rounded};

impl Native for FillSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        soc.computes(self.out().dtype())
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let out = op.require("out")?;
        let value = op.spec().value();
        match out.dtype() {
            // Rounded here, so that the number is not rounded twice on its way.
            DType::F16 | DType::BF16 => run.fill(&out, rounded(out.dtype(), value)),
            _ => run.fill(&out, value),
        }
    }
}
