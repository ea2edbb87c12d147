//! Hadamard transform of blocks: native for every legal call.

use crate::op::args::{Args, enqueue};
use crate::quant::hadamard;
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Hadamard;
use portolan_ops::Result;
use portolan_ops::quant::HadamardSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Hadamard) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &HadamardSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { hadamard(exec.into(), spec, args.read("x"), args.write("out")) };
    Ok(())
}
