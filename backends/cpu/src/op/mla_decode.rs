//! Absorbed latent attention: native up to the widest entry the kernels hold.

use super::attention::bases;
use crate::attention::{AttentionBases, AttentionTask, attention, plan};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::call::MlaDecode;
use portolan_core::{Launch, compose};
use portolan_ops::Result;
use portolan_ops::attention::MlaDecodeSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &MlaDecode) -> Result<()> {
    match plan(op.spec().query()) {
        Ok(()) => enqueue(launch, op, run),
        Err(why) => compose::mla_decode(launch, op, why),
    }
}

fn run(exec: &Exec, spec: &MlaDecodeSpec, args: &Args) -> Result<()> {
    let bases = AttentionBases { k: args.read("cache"), k_scale: args.read("cache_scale"), ..bases(args) };
    let task = AttentionTask::latent(spec, args.read("block_table"), &bases)?;
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run. The kernel checks lengths and the table.
    unsafe { attention(&exec.team, exec.threads, exec.isa, &task) }
}
