//! Rows of experts back to their tokens: native for every legal call.

use crate::moe;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::MoeUnpermute;
use portolan_ops::Result;
use portolan_ops::moe::MoeUnpermuteSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &MoeUnpermute) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &MoeUnpermuteSpec, args: &Args) -> Result<()> {
    let pointers = moe::UnpermutePointers {
        y: args.read("y"),
        row_map: args.read("row_map"),
        weights: args.read("weights"),
        out: args.write("out"),
    };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { moe::unpermute(exec, spec, &pointers) }
}
