//! Root-mean-square normalisation: native for every legal call.

use crate::norm::rms_norm;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::RmsNorm;
use portolan_ops::Result;
use portolan_ops::norm::RmsNormSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &RmsNorm) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &RmsNormSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe {
        rms_norm(
            &exec.team,
            exec.threads,
            exec.isa,
            spec,
            args.read("x"),
            args.optional("weight"),
            args.write("out"),
        );
    }
    Ok(())
}
