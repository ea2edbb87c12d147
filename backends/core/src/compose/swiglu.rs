//! SwiGLU from silu and a product.

use super::begin;
use crate::call::{Binary, Swiglu};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::{Result, Unsupported};

/// In f32: silu of the gate, times up; the halves of one tensor are views.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn swiglu(l: &Launch<'_>, op: &Swiglu, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (gate, up) = match op.tensor("gate_up") {
        Some(both) => {
            let view = |spec| Tensor::new(both.buffer().clone(), spec);
            (view(*op.spec().gate())?, view(*op.spec().up())?)
        }
        None => (op.require("gate")?, op.require("up")?),
    };
    let gate = p.unary(UnaryKind::Silu, &p.f32(&gate)?)?;
    let up = p.f32(&up)?;
    p.result(&op.require("out")?, |out| p.run(Binary::new(BinaryKind::Mul, &gate, &up, out)?))
}
