//! Merge of partial attention: native up to a number of parts whose weights the kernel holds.

use crate::attention::{MergeTask, merge_attention, plan_merge};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::call::MergeAttention;
use portolan_core::{Launch, compose};
use portolan_ops::Result;
use portolan_ops::attention::MergeAttentionSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &MergeAttention) -> Result<()> {
    match plan_merge(op.spec()) {
        Ok(()) => enqueue(launch, op, run),
        Err(why) => compose::merge_attention(launch, op, why),
    }
}

fn run(exec: &Exec, spec: &MergeAttentionSpec, args: &Args) -> Result<()> {
    let [parts, lses] = [args.read("parts"), args.read("lses")];
    let task = MergeTask::new(spec, [parts, lses], [args.write("out"), args.write("lse")]);
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { merge_attention(&exec.team, exec.threads, exec.isa, &task) };
    Ok(())
}
