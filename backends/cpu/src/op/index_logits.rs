//! Index logits: native up to the heads the kernel holds.

use crate::attention::{IndexTask, index_logits, plan_index};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::call::IndexLogits;
use portolan_core::{Launch, compose};
use portolan_ops::Result;
use portolan_ops::attention::IndexLogitsSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &IndexLogits) -> Result<()> {
    match plan_index(op.spec()) {
        Ok(()) => enqueue(launch, op, run),
        Err(why) => compose::index_logits(launch, op, why),
    }
}

fn run(exec: &Exec, spec: &IndexLogitsSpec, args: &Args) -> Result<()> {
    let read =
        ["q", "k", "k_scale", "block_table", "weights", "q_lens", "kv_lens"].map(|name| args.read(name));
    let task = IndexTask::new(spec, read, args.write("logits"))?;
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run. The kernel checks lengths and the table.
    unsafe { index_logits(&exec.team, exec.threads, exec.isa, &task) }
}
