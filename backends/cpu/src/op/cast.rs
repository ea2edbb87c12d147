//! Changes of element type: native for every legal call.

use crate::movement::cast::cast;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Cast;
use portolan_ops::Result;
use portolan_ops::kernel::CastSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Cast) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &CastSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { cast(exec.into(), spec, args.read("x"), args.write("out")) }
}
