//! Attention over a paged cache: native up to the widest head the kernels hold.

use super::attention::bases;
use crate::attention::{AttentionTask, attention, plan};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::call::PagedAttention;
use portolan_core::{Launch, compose};
use portolan_ops::Result;
use portolan_ops::attention::PagedAttentionSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &PagedAttention) -> Result<()> {
    match plan(op.spec().query()) {
        Ok(()) => enqueue(launch, op, run),
        Err(why) => compose::paged_attention(launch, op, why),
    }
}

fn run(exec: &Exec, spec: &PagedAttentionSpec, args: &Args) -> Result<()> {
    let task = AttentionTask::paged(spec, args.read("block_table"), &bases(args));
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run. The kernel checks lengths and the table.
    unsafe { attention(&exec.team, exec.threads, exec.isa, &task) }
}
