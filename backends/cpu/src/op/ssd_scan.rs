//! State-space recurrence of heads with one rate each: native up to the largest state the kernel holds.

use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use crate::ssm::{Spans, SsdScanViews, plan_ssd_scan, ssd_scan};
use portolan_core::call::SsdScan;
use portolan_core::{Launch, compose};
use portolan_ops::ssm::SsdScanSpec;
use portolan_ops::{Contract, Result};

pub(crate) fn launch(launch: &Launch<'_>, op: &SsdScan) -> Result<()> {
    match plan_ssd_scan(op.spec()) {
        Ok(()) => enqueue(launch, op, run),
        Err(why) => compose::ssd_scan(launch, op, why),
    }
}

fn run(exec: &Exec, spec: &SsdScanSpec, args: &Args) -> Result<()> {
    let views = SsdScanViews {
        x: args.view("x", spec.x()),
        delta: args.view("delta", spec.delta()),
        a: args.view("a", spec.a()),
        b: args.view("b", spec.b()),
        c: args.view("c", spec.c()),
        d: spec.d().map(|part| args.view("d", part)),
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
    unsafe { ssd_scan(&exec.team, exec.threads, exec.isa, spec, &spans, &views) };
    Ok(())
}
