//! The router of a mixture of experts: native for every legal call.

use crate::moe::{GatePointers, gate};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::MoeGate;
use portolan_ops::Result;
use portolan_ops::moe::MoeGateSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &MoeGate) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &MoeGateSpec, args: &Args) -> Result<()> {
    let pointers = GatePointers {
        logits: args.read("logits"),
        bias: args.read("bias"),
        token_ids: args.read("token_ids"),
        table: args.read("table"),
        weights: args.write("weights"),
        expert_ids: args.write("expert_ids"),
    };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { gate(exec, spec, &pointers) }
}
