//! Weights in the CPU's own forms: strips of 16 rows for quantized ones, panels of the product's tile for
//! dense ones.

use crate::Isa;
use crate::gemm::{Mat, pack_b, packed_bytes};
use crate::op::args::{Args, enqueue};
use crate::quant;
use crate::queue::Exec;
use portolan_core::call::Prepack;
use portolan_core::{Launch, Packing};
use portolan_ops::{OpError, PackedContent, PackedSpec, PrepackSpec, Result, TensorSpec, WeightSpec};

/// The form a weight takes for products.
pub(crate) fn packing(isa: Isa, weight: &WeightSpec) -> Option<Packing> {
    let (n, k) = (weight.n(), weight.k());
    match weight.content() {
        PackedContent::Dense(dtype) => {
            Some(Packing { tag: panel_tag(isa), bytes: packed_bytes(isa, dtype, n, k) })
        }
        content => {
            let (bytes, tag) = quant::packed_form(content, n, k).ok().flatten()?;
            Some(Packing { tag, bytes })
        }
    }
}

/// Panels are as wide as the tile of an instruction set.
fn panel_tag(isa: Isa) -> &'static str {
    match isa {
        Isa::Portable => "panel-portable",
        Isa::Avx2 => "panel-avx2",
        Isa::Avx512 => "panel-avx512",
    }
}

/// Fails with `Attribute` unless a dense weight was packed for this instruction set.
pub(crate) fn is_panel(isa: Isa, packed: &PackedSpec) -> Result<()> {
    let PackedContent::Dense(dtype) = packed.content() else {
        return Err(OpError::internal("linear", "a quantized weight reached the dense kernels"));
    };
    let bytes = packed_bytes(isa, dtype, packed.n(), packed.k());
    if packed.tag() == panel_tag(isa) && packed.bytes().numel() == bytes {
        return Ok(());
    }
    let what = format!("has form {}, expected {}; prepack it on this device", packed.tag(), panel_tag(isa));
    Err(OpError::attribute("linear", "weight.packed", what))
}

/// A stored weight `[n, k]` as the product's second factor `[k, n]`.
pub(crate) fn as_factor(weight: &TensorSpec, base: *const u8) -> Mat {
    let offset = weight.layout().offset() * weight.dtype().bits() as usize / 8;
    let (row_stride, col_stride) = (weight.strides()[1], weight.strides()[0]);
    Mat { ptr: base.wrapping_add(offset).cast_mut(), dtype: weight.dtype(), row_stride, col_stride }
}

pub(crate) fn launch(launch: &Launch<'_>, op: &Prepack) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &PrepackSpec, args: &Args) -> Result<()> {
    let packed = args.write("packed").wrapping_add(spec.packed().bytes().layout().offset());
    match spec.weight() {
        WeightSpec::Dense(weight) => {
            is_panel(exec.isa, spec.packed())?;
            let b = as_factor(weight, args.read("weight"));
            // SAFETY: core checked that both operands lie within live blocks and do not overlap; the packed
            // one has the length just checked.
            unsafe { pack_b(exec.isa, &b, spec.packed().n(), spec.packed().k(), packed) };
            Ok(())
        }
        // SAFETY: as above; the kernel checks the packed form.
        _ => unsafe { quant::prepack(&exec.team, exec.threads, spec, args.quant_parts(), packed) },
    }
}
