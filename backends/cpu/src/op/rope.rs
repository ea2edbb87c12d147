//! Rotary position embedding: native for every legal call.

use crate::attention::{RopeTask, rope};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Rope;
use portolan_ops::Result;
use portolan_ops::rope::RopeSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Rope) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &RopeSpec, args: &Args) -> Result<()> {
    let task = RopeTask::new(spec, args.read("x"), args.read("positions"), args.write("out"));
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { rope(&exec.team, exec.threads, exec.isa, &task) };
    Ok(())
}
