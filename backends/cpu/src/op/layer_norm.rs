//! Layer normalisation: native for every legal call.

use crate::norm::{LayerNormPointers, layer_norm};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::LayerNorm;
use portolan_ops::Result;
use portolan_ops::norm::LayerNormSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &LayerNorm) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &LayerNormSpec, args: &Args) -> Result<()> {
    let pointers = LayerNormPointers {
        x: args.read("x"),
        weight: args.optional("weight"),
        bias: args.optional("bias"),
        out: args.write("out"),
    };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { layer_norm(&exec.team, exec.threads, exec.isa, spec, pointers) };
    Ok(())
}
