//! New keys or values into a cache, contiguous or paged: native for every legal call.

use crate::attention::{CacheWriteTask, kv_cache_write};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::KvCacheWrite;
use portolan_ops::Result;
use portolan_ops::attention::KvCacheWriteSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &KvCacheWrite) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &KvCacheWriteSpec, args: &Args) -> Result<()> {
    let lens = [args.read("q_lens"), args.read("kv_lens")];
    let cache = [args.write("cache"), args.write("scale")];
    let task = CacheWriteTask::new(spec, args.read("x"), args.read("block_table"), lens, cache);
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run. The kernel checks the lengths.
    unsafe { kv_cache_write(&exec.team, exec.threads, exec.isa, &task) }
}
