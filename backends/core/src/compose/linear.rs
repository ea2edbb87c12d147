//! Linear layers from one matrix product; quantized weights are dequantized to f32 scratch first.

use super::begin;
use super::parts::{Parts, runs};
use crate::call::{Dequantize, Gemm, Linear};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::codec::SmallFloat;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, UnaryKind};
use portolan_ops::quant::{ActQuant, DequantizeSpec, WeightSpec};
use portolan_ops::{DType, Result, Unsupported};
use smallvec::SmallVec;

/// Dense: gemm_nt with its epilogue. Quantized: activations in f32, rounded to steps of 8 bits where the call says
/// so (the numbers `scale · code`, so that a float product gives what one of codes would), and a float product
/// with the dequantized weight.
///
/// # Errors
/// As the parts; `Unsupported` for packed weights and where the stream denies compositions.
pub fn linear(l: &Launch<'_>, op: &Linear, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (spec, x, out) = (op.spec(), op.require("x")?, op.require("out")?);
    let (rows, n, k) = (spec.rows(), spec.n(), spec.k());
    let WeightSpec::Quant(quant) = spec.weight() else {
        let weight = op.require("weight")?;
        // A single row is a matrix of one row; more dimensions are a batch that shares the weight.
        return match x.dims().len() {
            1 => product(&p, op, &x.reshape(&[1, k])?, &weight, &out.reshape(&[1, n])?),
            _ => product(&p, op, &x, &weight, &out),
        };
    };
    let weight = p.scratch(DType::F32, &[n, k])?;
    let dequantize = DequantizeSpec::new(quant, weight.spec())?;
    let names = ["codes", "scale", "offset", "outer", "outer_offset"];
    let parts: SmallVec<[Tensor; 5]> =
        names.iter().filter_map(|name| op.tensor(&format!("weight.{name}"))).collect();
    let operands: SmallVec<[&Tensor; 6]> = parts.iter().chain([&weight]).collect();
    p.run(Dequantize::bind(dequantize, &operands)?)?;
    drop(operands);
    let seen = p.f32_copy(&x, &[rows, k])?;
    round_activations(&p, &seen, spec.act_quant())?;
    let wide = p.scratch(DType::F32, &[rows, n])?;
    product(&p, op, &seen, &weight, &wide)?;
    p.store(&wide.reshape(out.dims())?, &out)
}

/// `out = act(x · weightᵀ + bias)`.
fn product(p: &Parts<'_, '_>, op: &Linear, x: &Tensor, weight: &Tensor, out: &Tensor) -> Result<()> {
    let mut gemm = Gemm::nt(x, weight, &mut out.clone())?;
    if let Some(bias) = op.tensor("bias") {
        let fits = bias.dtype() == out.dtype();
        gemm = gemm.bias(&if fits { bias } else { p.f32(&bias)? })?;
    }
    p.run(gemm.activation(op.spec().activation())?)
}

/// Replaces x `[rows, k]` by `scale · code`, as [`ActQuant`] gives them for each row and group.
fn round_activations(p: &Parts<'_, '_>, x: &Tensor, act_quant: ActQuant) -> Result<()> {
    let Some(group) = act_quant.group() else { return Ok(()) };
    let float = matches!(act_quant, ActQuant::F8 { .. });
    let top = if float { f64::from(SmallFloat::E4M3.largest()) } else { 127.0 };
    let [rows, k] = [x.dims()[0], x.dims()[1]];
    for (column, _, groups, width) in runs(k, group) {
        let x = x.narrow(1, column, groups * width)?.reshape(&[rows, groups, width])?;
        let scale = p.reduce(ReduceKind::Max, &p.unary(UnaryKind::Abs, &x)?, 2)?;
        p.scalar_in_place(BinaryKind::Div, &scale, top)?;
        // A scale of 0 makes every step 0, whatever it divides by; one that is not finite makes every one NaN.
        let zero = p.compare_scalar(CompareKind::Eq, &scale, 0.0)?;
        p.binary_in_place(BinaryKind::Div, &x, &p.replace(&zero, 1.0, &scale)?)?;
        if float {
            p.store(&p.cast(&x, DType::F8E4M3)?, &x)?;
        } else {
            p.unary_in_place(UnaryKind::Round, &x)?;
            p.scalar_in_place(BinaryKind::Max, &x, -127.0)?;
            p.scalar_in_place(BinaryKind::Min, &x, 127.0)?;
        }
        p.binary_in_place(BinaryKind::Mul, &x, &scale)?;
    }
    Ok(())
}
