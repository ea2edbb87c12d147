//! GeGLU from gelu and a product.

use super::begin;
use super::swiglu::operands;
use crate::call::{Binary, Geglu};
use crate::launch::Launch;
use portolan_ops::activation::GeluKind;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::{Result, Unsupported};

/// In f32: gelu of the gate, times up; parts of one tensor are views.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn geglu(l: &Launch<'_>, op: &Geglu, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let [gate, up] = operands(&p, op, spec.gate(), spec.up())?;
    let gated = match spec.kind() {
        GeluKind::Erf => p.unary(UnaryKind::Gelu, &gate)?,
        GeluKind::Tanh => p.unary(UnaryKind::GeluTanh, &gate)?,
    };
    p.result(&op.require("out")?, |out| p.run(Binary::new(BinaryKind::Mul, &gated, &up, out)?))
}
