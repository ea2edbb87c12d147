//! Cumulative operators and the linear recurrence: native for every legal call.

use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use crate::reduce::scan::{ScanPointers, scan};
use portolan_core::Launch;
use portolan_core::call::Scan;
use portolan_ops::Result;
use portolan_ops::kernel::ScanSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Scan) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &ScanSpec, args: &Args) -> Result<()> {
    let pointers = ScanPointers {
        decay: args.read("a"),
        // The linear form calls what it adds b.
        x: args.optional("b").unwrap_or(args.read("x")),
        initial: args.read("initial"),
        out: args.write("out"),
        last: args.write("last"),
    };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { scan(exec.into(), spec, pointers) }
}
