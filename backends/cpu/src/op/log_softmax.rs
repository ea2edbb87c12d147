//! The logarithm of softmax of every row: native for every legal call.

use crate::norm::log_softmax;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::LogSoftmax;
use portolan_ops::Result;
use portolan_ops::norm::LogSoftmaxSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &LogSoftmax) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &LogSoftmaxSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { log_softmax(&exec.team, exec.threads, exec.isa, spec, args.read("x"), args.write("out")) };
    Ok(())
}
