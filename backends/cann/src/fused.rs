//! Fused operators: each by its file in `op/` where the device has a kernel, else composed by core.

use crate::aclnn::Run;
use crate::{CannBackend, op};
use portolan_core::{Consumer, FusedOps, Launch, Ordinal, Packing, call, compose};
use portolan_ops::Result;
use portolan_ops::quant::WeightSpec;

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

            fn packing(&self, _device: Ordinal, weight: &WeightSpec, consumer: Consumer<'_>) -> Option<Packing> {
                op::prepack::packing(self.driver().ok()?, weight, consumer)
            }
        }
    };
}
portolan_core::for_each_op!(fused);
