//! Dequantize from casts, products and sums, by the f32 rule of the scheme; codes are moved as the bytes they are.

use super::begin;
use super::parts::{Parts, runs};
use crate::call::Dequantize;
use crate::launch::Launch;
use crate::op::{Call, Dispatch};
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind};
use portolan_ops::quant::{Offset, QuantSpec, WeightSpec};
use portolan_ops::{DType, Layout, OpError, Result, Shape, TensorSpec, Unsupported};

/// Codes as f32, then per block the scheme's two operations, each rounded once; then `out`'s type.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn dequantize(l: &Launch<'_>, op: &Dequantize, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let WeightSpec::Quant(quant) = op.spec().weight() else {
        return Err(OpError::internal("dequantize", "the weight is not quantized"));
    };
    p.store(&rows(&p, op, quant, None)?, &op.require("out")?)
}

/// The rows `ids` of a quantized weight (all of them without ids; zeros for negative ones) as f32 `[rows, k]`.
pub(super) fn rows<C: Dispatch>(
    p: &Parts<'_, '_>,
    op: &Call<C>,
    quant: &QuantSpec,
    ids: Option<&Tensor>,
) -> Result<Tensor> {
    let scheme = quant.scheme();
    let (k, [block_n, block_k]) = (quant.k(), scheme.block);
    let rows = ids.map_or(quant.n(), Tensor::numel);
    // Which entry of a tensor with one row a block belongs to each row.
    let index = |block: usize| -> Result<Option<Tensor>> {
        Ok(match (ids, block) {
            (None, 1) => None,
            (Some(ids), 1) => Some(ids.clone()),
            (None, block) => {
                Some(p.scalar(BinaryKind::Div, &p.iota(rows)?, block.min(i32::MAX as usize) as f64)?)
            }
            (Some(ids), block) => {
                let blocks = p.scalar(BinaryKind::Div, ids, block.min(i32::MAX as usize) as f64)?;
                // Integers divide toward zero, and padding must stay negative.
                Some(p.replace(&p.compare_scalar(CompareKind::Lt, ids, 0.0)?, -1.0, &blocks)?)
            }
        })
    };
    let (of_row, of_block) = (index(1)?, index(block_n)?);
    let pick = |tensor: Tensor, index: &Option<Tensor>| match index {
        None => Ok(tensor),
        Some(index) => p.gather(&tensor, 0, index)?.reshape(&[rows, tensor.dims()[1]]),
    };
    let stored = pick(as_bytes(&op.require("weight.codes")?)?, &of_row)?;
    let codes = numbers(p, &stored, scheme.code, k)?;

    // One number a block; two-level numbers are the product with their factor, rounded to f32.
    let per_block = |name: &'static str, outer: &'static str| -> Result<Option<Tensor>> {
        let Some(inner) = op.tensor(name) else { return Ok(None) };
        let (dtype, columns) = (inner.dtype(), inner.dims()[1]);
        let inner = numbers(p, &pick(as_bytes(&inner)?, &of_block)?, dtype, columns)?;
        let (Some(outer), Some((_, outer_block))) = (op.tensor(outer), scheme.scale.outer()) else {
            return Ok(Some(inner));
        };
        let outer = p.f32(&pick(outer, &of_block)?)?;
        let place =
            p.scalar(BinaryKind::Div, &p.iota(inner.dims()[1])?, (outer_block / block_k).max(1) as f64)?;
        Ok(Some(p.binary(BinaryKind::Mul, &p.gather(&outer, 1, &place)?, &inner)?))
    };
    let scale = per_block("weight.scale", "weight.outer")?;
    let offset = per_block("weight.offset", "weight.outer_offset")?;
    for (column, block, blocks, width) in runs(k, block_k) {
        let codes = codes.narrow(1, column, blocks * width)?.reshape(&[rows, blocks, width])?;
        let apply = |kind, numbers: &Option<Tensor>| match numbers {
            Some(numbers) => {
                let numbers = numbers.narrow(1, block, blocks)?.reshape(&[rows, blocks, 1])?;
                p.binary_in_place(kind, &codes, &numbers)
            }
            None => Err(OpError::internal("dequantize", "the scheme's tensors are not all there")),
        };
        if scheme.offset == Offset::ZeroPoint {
            apply(BinaryKind::Sub, &offset)?;
        }
        apply(BinaryKind::Mul, &scale)?;
        if scheme.offset == Offset::Min {
            apply(BinaryKind::Add, &offset)?;
        }
    }
    Ok(codes)
}

/// Whether the type has no movement of its own: codes that share a byte, and floats of a byte.
fn moves_as_bytes(dtype: DType) -> bool {
    dtype.is_sub_byte() || dtype.is_storage_float()
}

/// Elements seen as the bytes that hold them where their type does not move itself; others as they are.
fn as_bytes(x: &Tensor) -> Result<Tensor> {
    if !moves_as_bytes(x.dtype()) {
        return Ok(x.clone());
    }
    let ([n, k], stride) = ([x.dims()[0], x.dims()[1]], x.spec().strides()[0]);
    let each = if x.dtype().is_sub_byte() { 2 } else { 1 };
    let layout = Layout::new(&[stride / each, 1], x.spec().layout().offset() / each)?;
    let spec = TensorSpec::with_layout(DType::U8, Shape::new(&[n, k.div_ceil(each)])?, layout)?;
    Tensor::new(x.buffer().clone(), spec)
}

/// The numbers `[rows, columns]` of type `dtype` in what [`as_bytes`] saw, as f32; in scratch of their own unless
/// they are f32 already.
fn numbers(p: &Parts<'_, '_>, stored: &Tensor, dtype: DType, columns: usize) -> Result<Tensor> {
    if !moves_as_bytes(dtype) {
        return p.f32(stored);
    }
    let ([rows, stride], layout) = ([stored.dims()[0], stored.spec().strides()[0]], stored.spec().layout());
    let each = if dtype.is_sub_byte() { 2 } else { 1 };
    let layout = Layout::new(&[stride * each, 1], layout.offset() * each)?;
    let spec = TensorSpec::with_layout(dtype, Shape::new(&[rows, columns])?, layout)?;
    p.f32(&Tensor::new(stored.buffer().clone(), spec)?)
}
