//! SwiGLU from minima and maxima, silu and a product.

use super::begin;
use super::parts::Parts;
use crate::call::{Binary, Swiglu};
use crate::launch::Launch;
use crate::op::{Call, Dispatch};
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::{Result, TensorSpec, Unsupported};

/// In f32: bounds, silu of the gate, the offset of up, their product; parts of one tensor are views.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn swiglu(l: &Launch<'_>, op: &Swiglu, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let [mut gate, mut up] = operands(&p, op, spec.gate(), spec.up())?;
    if let Some(limit) = spec.limit().map(f64::from) {
        gate = p.scalar(BinaryKind::Min, &gate, limit)?;
        up = p.scalar(BinaryKind::Min, &up, limit)?;
        p.scalar_in_place(BinaryKind::Max, &up, -limit)?;
    }
    let gated = if spec.alpha() == 1.0 {
        p.unary(UnaryKind::Silu, &gate)?
    } else {
        let weight = p.scalar(BinaryKind::Mul, &gate, f64::from(spec.alpha()))?;
        p.unary_in_place(UnaryKind::Sigmoid, &weight)?;
        p.binary(BinaryKind::Mul, &gate, &weight)?
    };
    if spec.up_offset() != 0.0 {
        up = p.scalar(BinaryKind::Add, &up, f64::from(spec.up_offset()))?;
    }
    p.result(&op.require("out")?, |out| p.run(Binary::new(BinaryKind::Mul, &gated, &up, out)?))
}

/// The gate and up of a gated unit as f32: tensors of their own, or views of one that holds both.
pub(super) fn operands<C: Dispatch>(
    p: &Parts<'_, '_>,
    op: &Call<C>,
    gate: &TensorSpec,
    up: &TensorSpec,
) -> Result<[Tensor; 2]> {
    let [gate, up] = match op.tensor("gate_up") {
        Some(both) => {
            let view = |spec: &TensorSpec| Tensor::new(both.buffer().clone(), *spec);
            [view(gate)?, view(up)?]
        }
        None => [op.require("gate")?, op.require("up")?],
    };
    Ok([p.f32(&gate)?, p.f32(&up)?])
}
