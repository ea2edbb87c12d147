//! Comparisons: native for every legal call.

use crate::elementwise::compare::compare;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Compare;
use portolan_ops::Result;
use portolan_ops::kernel::CompareSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Compare) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &CompareSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { compare(exec.into(), spec, args.read("a"), args.read("b"), args.write("out")) }
}
