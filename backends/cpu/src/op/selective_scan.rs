//! Selective state-space recurrence: native up to the longest state the kernel holds.

use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use crate::ssm::{SelectiveScanViews, Spans, plan_selective_scan, selective_scan};
use portolan_core::call::SelectiveScan;
use portolan_core::{Launch, compose};
use portolan_ops::ssm::SelectiveScanSpec;
use portolan_ops::{Contract, Result};

pub(crate) fn launch(launch: &Launch<'_>, op: &SelectiveScan) -> Result<()> {
    match plan_selective_scan(op.spec()) {
        Ok(()) => enqueue(launch, op, run),
        Err(why) => compose::selective_scan(launch, op, why),
    }
}

fn run(exec: &Exec, spec: &SelectiveScanSpec, args: &Args) -> Result<()> {
    let views = SelectiveScanViews {
        x: args.view("x", spec.x()),
        delta: args.view("delta", spec.delta()),
        a: args.view("a", spec.a()),
        b: args.view("b", spec.b()),
        c: args.view("c", spec.c()),
        d: spec.d().map(|part| args.view("d", part)),
        z: spec.z().map(|part| args.view("z", part)),
        delta_bias: spec.delta_bias().map(|part| args.view("delta_bias", part)),
        initial: spec.initial().map(|part| args.view("initial", part)),
        out: args.view("out", spec.out()),
        last: spec.last().map(|part| args.view("last", part)),
    };
    let lens = spec.lens().map(|lens| (lens, args.view("lens", lens.device())));
    // SAFETY: core checked that the lengths lie within a live block.
    let spans = unsafe { Spans::read(spec.name(), spec.batch(), spec.tokens(), lens)? };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { selective_scan(&exec.team, exec.threads, exec.isa, spec, &spans, &views) };
    Ok(())
}
