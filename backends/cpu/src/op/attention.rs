//! Attention over a contiguous cache: native up to the widest head the kernels hold.

use crate::attention::{AttentionBases, AttentionTask, attention, plan};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::call::Attention;
use portolan_core::{Launch, compose};
use portolan_ops::Result;
use portolan_ops::attention::AttentionSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Attention) -> Result<()> {
    match plan(op.spec().query()) {
        Ok(()) => enqueue(launch, op, run),
        Err(why) => compose::attention(launch, op, why),
    }
}

/// The operands that the contiguous and the paged form share.
pub(crate) fn bases(args: &Args) -> AttentionBases {
    AttentionBases {
        q: args.read("q"),
        k: args.read("k"),
        v: args.read("v"),
        q_lens: args.read("q_lens"),
        kv_lens: args.read("kv_lens"),
        out: args.write("out"),
        lse: args.write("lse"),
        attn_mask: args.read("attn_mask"),
        slopes: args.read("slopes"),
        sinks: args.read("sinks"),
        k_scale: args.read("k_scale"),
        v_scale: args.read("v_scale"),
    }
}

fn run(exec: &Exec, spec: &AttentionSpec, args: &Args) -> Result<()> {
    let task = AttentionTask::contiguous(spec, &bases(args));
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run. The kernel checks the lengths.
    unsafe { attention(&exec.team, exec.threads, exec.isa, &task) }
}
