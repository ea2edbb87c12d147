//! Stable sort of every row: native for every legal call.

use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use crate::reduce::sort::sort;
use portolan_core::Launch;
use portolan_core::call::Sort;
use portolan_ops::Result;
use portolan_ops::sort::SortSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Sort) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &SortSpec, args: &Args) -> Result<()> {
    let [values, indices] = ["values", "indices"].map(|name| args.optional(name).map(|_| args.write(name)));
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { sort(exec.into(), spec, args.read("x"), values, indices) }
}
