//! Layer norm from means, differences, squares and a reciprocal root.

use super::begin;
use crate::call::LayerNorm;
use crate::launch::Launch;
use portolan_ops::kernel::{BinaryKind, ReduceKind, UnaryKind};
use portolan_ops::{Result, Unsupported};

/// In f32: subtract the mean; square, mean, add eps, reciprocal root; multiply, weigh, add the bias.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn layer_norm(l: &Launch<'_>, op: &LayerNorm, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let x = p.f32(&op.require("x")?)?;
    let last = x.dims().len().saturating_sub(1);
    let centred = p.binary(BinaryKind::Sub, &x, &p.reduce(ReduceKind::Mean, &x, last)?)?;
    let variance = p.reduce(ReduceKind::Mean, &p.unary(UnaryKind::Square, &centred)?, last)?;
    p.scalar_in_place(BinaryKind::Add, &variance, f64::from(op.spec().eps()))?;
    p.unary_in_place(UnaryKind::Rsqrt, &variance)?;
    p.binary_in_place(BinaryKind::Mul, &centred, &variance)?;
    for (name, kind) in [("weight", BinaryKind::Mul), ("bias", BinaryKind::Add)] {
        if let Some(columns) = op.tensor(name) {
            p.binary_in_place(kind, &centred, &p.f32(&columns)?)?;
        }
    }
    p.store(&centred, &op.require("out")?)
}
