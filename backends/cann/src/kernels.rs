//! The kernel core: no operator has a kernel yet.

use crate::CannBackend;
use portolan_core::{Kernels, Launch, Op, call};
use portolan_ops::{Result, Unsupported};

/// What to do meanwhile.
const HINT: &str = "run it on cpu:0";

macro_rules! kernels {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Kernels for CannBackend {
            $(
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                    Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, HINT))
                }
            )*
        }
    };
}
portolan_core::for_each_op!(kernels);
