//! Functions of one element: native for every legal call.

use crate::elementwise::unary::unary;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Unary;
use portolan_ops::Result;
use portolan_ops::kernel::UnarySpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Unary) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &UnarySpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { unary(exec.into(), spec, args.read("x"), args.write("out")) }
}
