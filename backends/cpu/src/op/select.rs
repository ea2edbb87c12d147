//! One of two values by a condition: native for every legal call.

use crate::elementwise::select::select;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Select;
use portolan_ops::Result;
use portolan_ops::kernel::SelectSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Select) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &SelectSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { select(exec.into(), spec, args.read("cond"), args.read("a"), args.read("b"), args.write("out")) }
}
