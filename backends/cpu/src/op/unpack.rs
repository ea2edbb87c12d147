//! Packed weights back into ordinary tensors: the exact inverse of `prepack`.

use crate::gemm::unpack_b;
use crate::op::args::{Args, enqueue};
use crate::op::prepack::{as_factor, is_panel};
use crate::quant;
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Unpack;
use portolan_ops::{Result, UnpackSpec, WeightSpec};

pub(crate) fn launch(launch: &Launch<'_>, op: &Unpack) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &UnpackSpec, args: &Args) -> Result<()> {
    let packed = args.read("packed").wrapping_add(spec.packed().bytes().layout().offset());
    match spec.weight() {
        WeightSpec::Dense(weight) => {
            is_panel(exec.isa, spec.packed())?;
            let b = as_factor(weight, args.read("weight"));
            // SAFETY: core checked that both operands lie within live blocks and do not overlap; the packed
            // one has the length just checked.
            unsafe { unpack_b(exec.isa, packed, spec.packed().n(), spec.packed().k(), &b) };
            Ok(())
        }
        // SAFETY: as above; the kernel checks the packed form.
        _ => unsafe { quant::unpack(&exec.team, exec.threads, spec, packed, args.quant_parts()) },
    }
}
