//! Gated unit with SiLU: native for every legal call.

use crate::activation::swiglu;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Swiglu;
use portolan_ops::Result;
use portolan_ops::activation::SwigluSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Swiglu) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &SwigluSpec, args: &Args) -> Result<()> {
    // The fused form is two views of one buffer.
    let fused = args.optional("gate_up");
    let (gate, up) = (fused.unwrap_or(args.read("gate")), fused.unwrap_or(args.read("up")));
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { swiglu(&exec.team, exec.threads, exec.isa, spec, gate, up, args.write("out")) };
    Ok(())
}
