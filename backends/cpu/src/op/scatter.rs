//! Entries written at indices: native for every legal call.

use crate::movement::scatter::scatter;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Scatter;
use portolan_ops::Result;
use portolan_ops::kernel::ScatterSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Scatter) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &ScatterSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe {
        scatter(exec.into(), spec, args.read("x"), args.read("index"), args.read("src"), args.write("out"))
    }
}
