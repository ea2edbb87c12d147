//! Quantize from quotients, rounding and a cast; blocks are views of four dimensions.

use super::begin;
use super::parts::{Parts, runs};
use crate::call::Quantize;
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::codec::SmallFloat;
use portolan_ops::kernel::{BinaryKind, CompareKind, UnaryKind};
use portolan_ops::quant::{Offset, QuantScheme};
use portolan_ops::{Result, Unsupported};

/// In f32, by the scheme's rule operation by operation, then a cast to the codes' type.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn quantize(l: &Launch<'_>, op: &Quantize, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (x, scheme) = (op.require("x")?, *op.spec().quant().scheme());
    let x = p.f32_copy(&x, x.dims())?;
    let scale = p.f32(&op.require("scale")?)?;
    let offset = op.tensor("offset").map(|offset| p.f32(&offset)).transpose()?;
    let (low, high) = scheme.code_range();
    let limits = (f64::from(low), f64::from(high));
    store_codes(&p, &scheme, &x, &scale, offset.as_ref(), limits, &op.require("codes")?)
}

/// Blocks that go together: rows and columns `(first, first block, blocks, extent of a block)`.
pub(super) struct Tiles {
    rows: (usize, usize, usize, usize),
    columns: (usize, usize, usize, usize),
}

impl Tiles {
    /// Whole blocks and cut ones of an `[n, k]` tensor: at most four.
    pub(super) fn of(scheme: &QuantScheme, n: usize, k: usize) -> Vec<Tiles> {
        let [block_n, block_k] = scheme.block;
        let columns = || runs(k, block_k);
        runs(n, block_n).flat_map(|rows| columns().map(move |columns| Tiles { rows, columns })).collect()
    }

    /// Elements as `[row blocks, rows, column blocks, columns]`.
    pub(super) fn elements(&self, x: &Tensor) -> Result<Tensor> {
        let ((row, _, r, rows), (column, _, c, columns)) = (self.rows, self.columns);
        x.narrow(0, row, r * rows)?.narrow(1, column, c * columns)?.reshape(&[r, rows, c, columns])
    }

    /// One number a block, as `[row blocks, 1, column blocks, 1]`.
    pub(super) fn numbers(&self, scale: &Tensor) -> Result<Tensor> {
        let ((_, row, r, _), (_, column, c, _)) = (self.rows, self.columns);
        scale.narrow(0, row, r)?.narrow(1, column, c)?.reshape(&[r, 1, c, 1])
    }
}

/// Replaces `x`, contiguous f32, by codes between `limits`, and casts them into `codes`.
pub(super) fn store_codes(
    p: &Parts<'_, '_>,
    scheme: &QuantScheme,
    x: &Tensor,
    scale: &Tensor,
    offset: Option<&Tensor>,
    limits: (f64, f64),
    codes: &Tensor,
) -> Result<()> {
    // A scale of 0 or NaN has codes 0: what is divided by 1 in its place is dropped afterwards.
    let usable = p.compare_scalar(CompareKind::Gt, &p.unary(UnaryKind::Abs, scale)?, 0.0)?;
    let divisor = p.select_or(&usable, scale, 1.0)?;
    let integer = SmallFloat::of(scheme.code).is_none();
    for tiles in Tiles::of(scheme, x.dims()[0], x.dims()[1]) {
        let part = tiles.elements(x)?;
        let offset = offset.map(|offset| tiles.numbers(offset)).transpose()?;
        if let (Offset::Min, Some(min)) = (scheme.offset, &offset) {
            p.binary_in_place(BinaryKind::Sub, &part, min)?;
        }
        p.binary_in_place(BinaryKind::Div, &part, &tiles.numbers(&divisor)?)?;
        if integer {
            p.unary_in_place(UnaryKind::Round, &part)?;
        }
        if let (Offset::ZeroPoint, Some(zero)) = (scheme.offset, &offset) {
            p.binary_in_place(BinaryKind::Add, &part, zero)?;
        }
        p.store(&p.select_or(&tiles.numbers(&usable)?, &part, 0.0)?, &part)?;
    }
    p.scalar_in_place(BinaryKind::Max, x, limits.0)?;
    p.scalar_in_place(BinaryKind::Min, x, limits.1)?;
    p.store(x, codes)
}
