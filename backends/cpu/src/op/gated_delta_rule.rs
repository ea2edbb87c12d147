//! The gated delta rule: native up to the longest key the kernel holds.

use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use crate::ssm::{GatedDeltaRuleViews, Spans, gated_delta_rule, plan_gated_delta_rule};
use portolan_core::call::GatedDeltaRule;
use portolan_core::{Launch, compose};
use portolan_ops::ssm::GatedDeltaRuleSpec;
use portolan_ops::{Contract, Result};

pub(crate) fn launch(launch: &Launch<'_>, op: &GatedDeltaRule) -> Result<()> {
    match plan_gated_delta_rule(op.spec()) {
        Ok(()) => enqueue(launch, op, run),
        Err(why) => compose::gated_delta_rule(launch, op, why),
    }
}

fn run(exec: &Exec, spec: &GatedDeltaRuleSpec, args: &Args) -> Result<()> {
    let views = GatedDeltaRuleViews {
        q: args.view("q", spec.q()),
        k: args.view("k", spec.k()),
        v: args.view("v", spec.v()),
        g: args.view("g", spec.g()),
        beta: args.view("beta", spec.beta()),
        initial: spec.initial().map(|part| args.view("initial", part)),
        out: args.view("out", spec.out()),
        last: spec.last().map(|part| args.view("last", part)),
    };
    let lens = spec.lens().map(|lens| (lens, args.view("lens", lens.device())));
    // SAFETY: core checked that the lengths lie within a live block.
    let spans = unsafe { Spans::read(spec.name(), spec.batch(), spec.tokens(), lens)? };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { gated_delta_rule(&exec.team, exec.threads, exec.isa, spec, &spans, &views) };
    Ok(())
}
