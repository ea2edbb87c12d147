//! Matrix product: every legal form is native.

use crate::gemm::{GemmTask, Operands, gemm};
use crate::queue::CpuStream;
use portolan_core::Launch;
use portolan_core::call::Gemm;
use portolan_ops::{Determinism, Result};

pub(crate) fn launch(launch: &Launch<'_>, op: &Gemm) -> Result<()> {
    let spec = op.spec().clone();
    let address = |name| op.address(name).unwrap_or(0);
    let (a, b, c, bias, out) = (address("a"), address("b"), address("c"), address("bias"), address("out"));
    let invariant = launch.determinism() >= Determinism::BatchInvariant;
    CpuStream::enqueue(launch, move |exec| {
        let operands = Operands {
            a: a as *const u8,
            b: b as *const u8,
            c: c as *const u8,
            bias: bias as *const u8,
            out: out as *mut u8,
        };
        let task = GemmTask::of(&spec, &operands, invariant);
        // SAFETY: the contract checked extents and strides, core that every operand lies within a live
        // block which stream order protects until this task has run.
        unsafe { gemm(&exec.team, exec.threads, exec.isa, &task) };
        Ok(())
    })
}
