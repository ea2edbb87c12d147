//! Changes of element type: one kernel; a copy where there is nothing to change.

use super::Native;
use crate::aclnn::{Plan, Run, Soc};
use crate::product::Product;
use portolan_core::Call;
use portolan_ops::kernel::CastSpec;
use portolan_ops::{DType, Result, Unsupported};

impl Native for CastSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        // What is too large for it becomes its largest number, and not infinity.
        if self.out().dtype() == DType::F8E5M2 && self.x().dtype() != DType::F8E5M2 {
            return Err(Unsupported::Precision);
        }
        [self.x(), self.out()].into_iter().try_for_each(|spec| match spec.dtype() {
            DType::F64 => Ok(()),
            // Float types that only the newest product has numbers of.
            DType::F8E4M3 | DType::F8E5M2 if soc.product == Product::A5 => Ok(()),
            dtype => soc.computes(dtype).map_err(|_| Unsupported::DType(dtype)),
        })
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        run.store(&op.require("x")?, &op.require("out")?)
    }
}
