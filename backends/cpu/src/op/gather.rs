//! Entries by index: native for every legal call.

use crate::movement::gather::gather;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Gather;
use portolan_ops::Result;
use portolan_ops::kernel::GatherSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Gather) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &GatherSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { gather(exec.into(), spec, args.read("x"), args.read("index"), args.write("out")) }
}
