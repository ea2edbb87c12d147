//! Dynamic quantize: largest magnitudes by reduction, scales from them, then as quantize.

use super::begin;
use super::parts::Parts;
use super::quantize::{Tiles, store_codes};
use crate::call::DynamicQuantize;
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, UnaryKind};
use portolan_ops::quant::{QuantScheme, ScaleKind};
use portolan_ops::{DType, Result, Unsupported};

/// In f32, by the scheme's rules operation by operation.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn dynamic_quantize(l: &Launch<'_>, op: &DynamicQuantize, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (x, scheme) = (op.require("x")?, *op.spec().quant().scheme());
    let (x, out) = (p.f32_copy(&x, x.dims())?, op.require("scale")?);
    let largest = p.scratch(DType::F32, out.dims())?;
    for tiles in Tiles::of(&scheme, x.dims()[0], x.dims()[1]) {
        let sizes = p.unary(UnaryKind::Abs, &tiles.elements(&x)?)?;
        let of_row = p.reduce(ReduceKind::Max, &sizes, 3)?;
        p.store(&p.reduce(ReduceKind::Max, &of_row, 1)?, &tiles.numbers(&largest)?)?;
    }
    let scale = scales(&p, &scheme, &largest)?;
    p.store(&scale, &out)?;
    let top = f64::from(scheme.symmetric_top());
    store_codes(&p, &scheme, &x, &scale, None, (-top, top), &op.require("codes")?)
}

/// [`QuantScheme::block_scale`] of every entry.
fn scales(p: &Parts<'_, '_>, scheme: &QuantScheme, largest: &Tensor) -> Result<Tensor> {
    let top = f64::from(scheme.symmetric_top());
    let scale = if scheme.scale == ScaleKind::E8M0 {
        // The nearest power of two, halved where it is above, is the one below.
        let nearest = p.f32(&p.cast(largest, DType::E8M0)?)?;
        let above = p.compare(CompareKind::Gt, &nearest, largest)?;
        let below = p.select(&above, &p.scalar(BinaryKind::Mul, &nearest, 0.5)?, &nearest)?;
        let scale = p.scalar(BinaryKind::Mul, &below, (-top.log2().floor()).exp2())?;
        p.scalar_in_place(BinaryKind::Max, &scale, 2f64.powi(-127))?;
        scale
    } else {
        p.scalar(BinaryKind::Div, largest, top)?
    };
    // 0 times what is no finite number is NaN, and so is the scale then.
    p.binary_in_place(BinaryKind::Add, &scale, &p.scalar(BinaryKind::Mul, largest, 0.0)?)?;
    Ok(scale)
}
