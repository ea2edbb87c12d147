//! Gated unit with GELU: native for every legal call.

use crate::activation::geglu;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Geglu;
use portolan_ops::Result;
use portolan_ops::activation::GegluSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Geglu) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &GegluSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { geglu(&exec.team, exec.threads, exec.isa, spec, args.gate_pointers()) };
    Ok(())
}
