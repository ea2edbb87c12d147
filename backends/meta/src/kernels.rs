//! The kernel core: every legal call is accepted, and nothing is done.

use crate::MetaBackend;
use portolan_core::{Kernels, Launch, call};
use portolan_ops::Result;

macro_rules! kernels {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Kernels for MetaBackend {
            $(
                fn $method(&self, _launch: &Launch<'_>, _op: &call::$kind) -> Result<()> {
                    Ok(())
                }
            )*
        }
    };
}
portolan_core::for_each_op!(kernels);
