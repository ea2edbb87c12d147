//! Softmax of every row: native for every legal call.

use crate::norm::softmax;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Softmax;
use portolan_ops::Result;
use portolan_ops::norm::SoftmaxSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Softmax) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &SoftmaxSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { softmax(&exec.team, exec.threads, exec.isa, spec, args.read("x"), args.write("out")) };
    Ok(())
}
