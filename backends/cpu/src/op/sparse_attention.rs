//! Sparse attention over a latent cache: native up to the widest entry the kernels hold.

use super::attention::bases;
use crate::attention::{AttentionBases, SparseTask, plan_heads, sparse_attention};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::call::SparseAttention;
use portolan_core::{Launch, compose};
use portolan_ops::attention::SparseAttentionSpec;
use portolan_ops::{Result, Unsupported};

pub(crate) fn plan(spec: &SparseAttentionSpec) -> core::result::Result<(), Unsupported> {
    plan_heads(spec.q().dims()[2])
}

pub(crate) fn launch(launch: &Launch<'_>, op: &SparseAttention) -> Result<()> {
    match plan(op.spec()) {
        Ok(()) => enqueue(launch, op, run),
        Err(why) => compose::sparse_attention(launch, op, why),
    }
}

fn run(exec: &Exec, spec: &SparseAttentionSpec, args: &Args) -> Result<()> {
    let bases = AttentionBases { k: args.read("cache"), k_scale: args.read("cache_scale"), ..bases(args) };
    let task = SparseTask::new(spec, args.read("block_table"), args.read("indices"), &bases)?;
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run. The kernel checks lengths, lists and the table.
    unsafe { sparse_attention(&exec.team, exec.threads, exec.isa, task) }
}
