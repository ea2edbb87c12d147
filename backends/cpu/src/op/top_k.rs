//! The largest entries of every row: native for every legal call.

use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use crate::reduce::top_k::top_k;
use portolan_core::Launch;
use portolan_core::call::TopK;
use portolan_ops::Result;
use portolan_ops::kernel::TopKSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &TopK) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &TopKSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { top_k(exec.into(), spec, args.read("x"), args.write("values"), args.write("indices")) }
}
