//! Root-mean-square norm from squares, their mean and a reciprocal root.

use super::begin;
use super::parts::Parts;
use crate::call::{Binary, RmsNorm};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, ReduceKind, UnaryKind};
use portolan_ops::{Result, Unsupported};

/// In f32: square, mean, add eps, reciprocal root, multiply, weigh.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn rms_norm(l: &Launch<'_>, op: &RmsNorm, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let x = p.f32(&op.require("x")?)?;
    normalise(&p, &x, op.tensor("weight"), op.spec().eps(), &op.require("out")?)
}

/// The norm of f32 rows, into `out`; `out` may be `x` itself.
pub(super) fn normalise(
    p: &Parts<'_, '_>,
    x: &Tensor,
    weight: Option<Tensor>,
    eps: f32,
    out: &Tensor,
) -> Result<()> {
    let squares = p.unary(UnaryKind::Square, x)?;
    let mean = p.reduce(ReduceKind::Mean, &squares, x.dims().len().saturating_sub(1))?;
    p.scalar_in_place(BinaryKind::Add, &mean, f64::from(eps))?;
    p.unary_in_place(UnaryKind::Rsqrt, &mean)?;
    let Some(weight) = weight else {
        return p.result(out, |out| p.run(Binary::new(BinaryKind::Mul, x, &mean, out)?));
    };
    let (normal, weight) = (p.binary(BinaryKind::Mul, x, &mean)?, p.f32(&weight)?);
    p.result(out, |out| p.run(Binary::new(BinaryKind::Mul, &normal, &weight, out)?))
}
