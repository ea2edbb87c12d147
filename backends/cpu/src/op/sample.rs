//! The next token of every row of logits: native for every legal call.

use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use crate::sample::sample;
use portolan_core::Launch;
use portolan_core::call::Sample;
use portolan_ops::Result;
use portolan_ops::sample::SampleSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Sample) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &SampleSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe {
        sample(
            &exec.team,
            exec.threads,
            exec.isa,
            spec,
            args.read("logits"),
            args.read("uniforms"),
            args.optional("history"),
            args.write("out"),
        );
    }
    Ok(())
}
