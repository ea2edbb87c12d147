//! Short causal convolution of every channel: native for every legal call.

use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use crate::ssm::{ConvViews, Spans, causal_conv1d};
use portolan_core::Launch;
use portolan_core::call::CausalConv1d;
use portolan_ops::ssm::CausalConv1dSpec;
use portolan_ops::{Contract, Result};

pub(crate) fn launch(launch: &Launch<'_>, op: &CausalConv1d) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &CausalConv1dSpec, args: &Args) -> Result<()> {
    let views = ConvViews {
        x: args.view("x", spec.x()),
        weight: args.view("weight", spec.weight()),
        bias: spec.bias().map(|part| args.view("bias", part)),
        initial: spec.initial().map(|part| args.view("initial", part)),
        out: args.view("out", spec.out()),
        last: spec.last().map(|part| args.view("last", part)),
    };
    let lens = spec.lens().map(|lens| (lens, args.view("lens", lens.device())));
    // SAFETY: core checked that the lengths lie within a live block.
    let spans = unsafe { Spans::read(spec.name(), spec.batch(), spec.tokens(), lens)? };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { causal_conv1d(&exec.team, exec.threads, exec.isa, spec, &spans, &views) };
    Ok(())
}
