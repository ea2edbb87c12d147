//! Fused operators: one kernel that does nothing, or the composition that core would run.

use crate::{COMPOSED, Count, MetaBackend};
use portolan_core::{CustomOp, FusedOps, Launch, call, compose};
use portolan_ops::Result;

macro_rules! fused {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl FusedOps for MetaBackend {
            $(
                fn $fmethod(&self, launch: &Launch<'_>, op: &call::$fkind) -> Result<()> {
                    match self.count {
                        Count::Fused => Ok(()),
                        Count::Composed => compose::$fmethod(launch, op, COMPOSED),
                    }
                }
            )*

            /// Needs no kernel: its cost is its contract's.
            fn custom(&self, _launch: &Launch<'_>, _op: &CustomOp) -> Result<()> {
                Ok(())
            }
        }
    };
}
portolan_core::for_each_op!(fused);
