//! Functions of two elements: native for every legal call.

use crate::elementwise::binary::binary;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Binary;
use portolan_ops::Result;
use portolan_ops::kernel::BinarySpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Binary) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &BinarySpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { binary(exec.into(), spec, args.read("a"), args.read("b"), args.write("out")) }
}
