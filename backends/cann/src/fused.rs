//! Fused operators: each by its file in `op/` where the device has a kernel, else composed by core.

use crate::aclnn::Run;
use crate::{CannBackend, op};
use portolan_core::{FusedOps, Launch, call, compose};
use portolan_ops::Result;

macro_rules! fused {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl FusedOps for CannBackend {
            $(
                fn $fmethod(&self, launch: &Launch<'_>, op: &call::$fkind) -> Result<()> {
                    op::fused(&Run::begin(self, launch)?, op, compose::$fmethod)
                }
            )*
        }
    };
}
portolan_core::for_each_op!(fused);
