//! Matrix product: every legal form is native.

use crate::gemm::{GemmTask, Operands, gemm};
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Gemm;
use portolan_ops::Result;
use portolan_ops::kernel::GemmSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Gemm) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &GemmSpec, args: &Args) -> Result<()> {
    let operands = Operands {
        a: args.read("a"),
        b: args.read("b"),
        c: args.read("c"),
        bias: args.read("bias"),
        out: args.write("out"),
    };
    let task = GemmTask::of(spec, &operands, args.batch_invariant());
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { gemm(&exec.team, exec.threads, exec.isa, &task) };
    Ok(())
}
