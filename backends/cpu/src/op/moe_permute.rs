//! Rows of tokens to their experts: native for every legal call.

use crate::moe;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::MoePermute;
use portolan_ops::Result;
use portolan_ops::moe::MoePermuteSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &MoePermute) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &MoePermuteSpec, args: &Args) -> Result<()> {
    let pointers = moe::PermutePointers {
        x: args.read("x"),
        expert_ids: args.read("expert_ids"),
        out: args.write("out"),
        row_map: args.write("row_map"),
        offsets: args.write("offsets"),
        counts: args.write("counts"),
        dropped: args.write("dropped"),
    };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { moe::permute(exec, spec, &pointers) }
}
