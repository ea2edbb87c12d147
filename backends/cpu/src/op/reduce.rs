//! Sums, extrema and their places: native for every legal call.

use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use crate::reduce::fold::reduce;
use portolan_core::Launch;
use portolan_core::call::Reduce;
use portolan_ops::Result;
use portolan_ops::kernel::ReduceSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Reduce) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &ReduceSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { reduce(exec.into(), spec, args.read("x"), args.write("out")) }
}
