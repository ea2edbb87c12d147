//! The kernel core on the device: each method hands the operator to its file in `op/`.

use crate::aclnn::Run;
use crate::{CannBackend, op};
use portolan_core::{Kernels, Launch, call};
use portolan_ops::Result;

macro_rules! kernels {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Kernels for CannBackend {
            $(
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                    op::kernel(&Run::begin(self, launch)?, op)
                }
            )*
        }
    };
}
portolan_core::for_each_op!(kernels);
