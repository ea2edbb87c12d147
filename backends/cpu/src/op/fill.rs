//! Constants: native for every legal call.

use crate::movement::fill::fill;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Fill;
use portolan_ops::Result;
use portolan_ops::kernel::FillSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Fill) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &FillSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { fill(exec.into(), spec, args.write("out")) }
}
