//! Linear layers: dense weights go through the matrix product, quantized ones through their own kernels.

use crate::gemm::{self, BatchDim, Bias, Factor, GemmTask, Mat};
use crate::op::args::{Args, enqueue};
use crate::op::prepack::is_panel;
use crate::quant::{self, WeightData};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Linear;
use portolan_ops::{LinearSpec, OpError, PackedContent, Result, TensorSpec, WeightSpec};

pub(crate) fn launch(launch: &Launch<'_>, op: &Linear) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &LinearSpec, args: &Args) -> Result<()> {
    let (x, bias, out) = (args.read("x"), args.read("bias"), args.write("out"));
    let weight = match spec.weight() {
        WeightSpec::Dense(weight) => {
            let b = mat(weight, args.read("weight"), weight.strides()[1], weight.strides()[0]);
            return dense(exec, spec, args, Factor::Plain(b));
        }
        WeightSpec::Packed(packed) => match packed.content() {
            PackedContent::Dense(dtype) => {
                is_panel(exec.isa, packed)?;
                return dense(exec, spec, args, Factor::Packed { ptr: args.read("weight.packed"), dtype });
            }
            PackedContent::Quant(_) => WeightData::Packed(args.read("weight.packed")),
        },
        _ => WeightData::Quant(args.quant_parts()),
    };
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { quant::linear(&exec.team, exec.threads, exec.isa, spec, x, weight, bias, out) }
}

fn mat(spec: &TensorSpec, base: *const u8, row_stride: usize, col_stride: usize) -> Mat {
    let offset = spec.layout().offset() * spec.dtype().bits() as usize / 8;
    Mat { ptr: base.wrapping_add(offset).cast_mut(), dtype: spec.dtype(), row_stride, col_stride }
}

/// `x` as one matrix where its leading dimensions are evenly spaced, else as a batch of them.
fn dense(exec: &Exec, spec: &LinearSpec, args: &Args, b: Factor) -> Result<()> {
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
        a: mat(&x, args.read("x"), x.strides()[rank - 2], x.strides()[rank - 1]),
        b,
        out: mat(&out, args.read("out"), out.strides()[rank - 2], out.strides()[rank - 1]),
        c: None,
        bias: spec.bias().map(|bias| {
            let at = mat(bias, args.read("bias"), 0, bias.strides()[0]);
            Bias { ptr: at.ptr, dtype: at.dtype, stride: at.col_stride }
        }),
        alpha: 1.0,
        beta: 0.0,
        activation: spec.activation(),
        batch,
        invariant: args.batch_invariant(),
    };
    // SAFETY: as in `run`.
    unsafe { gemm::gemm(&exec.team, exec.threads, exec.isa, &task) };
    Ok(())
}
