//! Linear layers: dense weights go through the matrix product, quantized ones through their own kernels.

use crate::gemm::{self, BatchDim, Bias, Factor, GemmTask, Mat};
use crate::op::args::{Args, enqueue};
use crate::op::prepack::is_panel;
use crate::quant::{self, QuantParts, WeightData};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Linear;
use portolan_ops::{LinearSpec, OpError, PackedContent, Result, TensorSpec, WeightSpec};

pub(crate) fn launch(launch: &Launch<'_>, op: &Linear) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &LinearSpec, args: &Args) -> Result<()> {
    let pointers = LayerPointers {
        x: args.read("x"),
        weight: WeightPointer::of(args, spec.weight()),
        bias: args.read("bias"),
        out: args.write("out"),
    };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { layer(exec, spec, &pointers, args.batch_invariant()) }
}

/// Where a weight lies: the first bytes of its tensors' allocations.
#[derive(Clone, Copy)]
pub(crate) enum WeightPointer {
    Dense(*const u8),
    Quant(QuantParts),
    Packed(*const u8),
}

impl WeightPointer {
    /// That of an operator with one weight.
    fn of(args: &Args, weight: &WeightSpec) -> Self {
        match weight {
            WeightSpec::Dense(_) => WeightPointer::Dense(args.read("weight")),
            WeightSpec::Packed(_) => WeightPointer::Packed(args.read("weight.packed")),
            _ => WeightPointer::Quant(args.quant_parts()),
        }
    }
}

/// Where the operands of a layer lie; bias is null where there is none.
#[derive(Clone, Copy)]
pub(crate) struct LayerPointers {
    pub(crate) x: *const u8,
    pub(crate) weight: WeightPointer,
    pub(crate) bias: *const u8,
    pub(crate) out: *mut u8,
}

/// Runs one layer.
///
/// # Errors
/// `Attribute` for a packed form that is not this backend's, `Data` for a code out of its scheme's range.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and out overlaps nothing.
pub(crate) unsafe fn layer(
    exec: &Exec,
    spec: &LinearSpec,
    pointers: &LayerPointers,
    invariant: bool,
) -> Result<()> {
    let weight = match (spec.weight(), pointers.weight) {
        (WeightSpec::Dense(weight), WeightPointer::Dense(base)) => {
            let b = mat(weight, base, weight.strides()[1], weight.strides()[0]);
            return dense(exec, spec, pointers, Factor::Plain(b), invariant);
        }
        (WeightSpec::Packed(packed), WeightPointer::Packed(base)) => {
            let ptr = base.wrapping_add(packed.bytes().layout().offset());
            match packed.content() {
                PackedContent::Dense(dtype) => {
                    is_panel(exec.isa, packed)?;
                    return dense(exec, spec, pointers, Factor::Packed { ptr, dtype }, invariant);
                }
                PackedContent::Quant(_) => WeightData::Packed(ptr),
            }
        }
        (WeightSpec::Quant(_), WeightPointer::Quant(parts)) => WeightData::Quant(parts),
        _ => return Err(OpError::internal("linear", "the weight's memory is not of its form")),
    };
    let LayerPointers { x, bias, out, .. } = *pointers;
    // SAFETY: the caller's promise.
    unsafe { quant::linear(&exec.team, exec.threads, exec.isa, spec, x, weight, bias, out) }
}

fn mat(spec: &TensorSpec, base: *const u8, row_stride: usize, col_stride: usize) -> Mat {
    let offset = spec.layout().offset() * spec.dtype().bits() as usize / 8;
    Mat { ptr: base.wrapping_add(offset).cast_mut(), dtype: spec.dtype(), row_stride, col_stride }
}

/// `x` as one matrix where its leading dimensions are evenly spaced, else as a batch of them.
fn dense(exec: &Exec, spec: &LinearSpec, pointers: &LayerPointers, b: Factor, invariant: bool) -> Result<()> {
    let merged = spec
        .x()
        .reshape(&[spec.rows(), spec.k()])
        .ok()
        .zip(spec.out().reshape(&[spec.rows(), spec.n()]).ok());
    let (x, out) = merged.unwrap_or((*spec.x(), *spec.out()));
    let [lead @ .., m, _] = x.dims() else {
        return Err(OpError::internal("linear", "a vector that is no matrix of one row"));
    };
    let batch = (0..lead.len())
        .map(|dim| BatchDim {
            len: lead[dim],
            a: x.strides()[dim],
            out: out.strides()[dim],
            ..BatchDim::default()
        })
        .collect();
    let rank = x.rank();
    let task = GemmTask {
        m: *m,
        n: spec.n(),
        k: spec.k(),
        a: mat(&x, pointers.x, x.strides()[rank - 2], x.strides()[rank - 1]),
        b,
        out: mat(&out, pointers.out.cast_const(), out.strides()[rank - 2], out.strides()[rank - 1]),
        c: None,
        bias: spec.bias().map(|bias| {
            let at = mat(bias, pointers.bias, 0, bias.strides()[0]);
            Bias { ptr: at.ptr, dtype: at.dtype, stride: at.col_stride }
        }),
        alpha: 1.0,
        beta: 0.0,
        activation: spec.activation(),
        batch,
        invariant,
    };
    // SAFETY: promised by the caller of `layer`.
    unsafe { gemm::gemm(&exec.team, exec.threads, exec.isa, &task) };
    Ok(())
}
