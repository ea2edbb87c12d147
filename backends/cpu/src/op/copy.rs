//! Copies between layouts: native for every legal call.

use crate::movement::copy::copy_strided;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Copy;
use portolan_ops::Result;
use portolan_ops::kernel::CopySpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Copy) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &CopySpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { copy_strided(exec.into(), spec, args.read("x"), args.write("out")) }
}
