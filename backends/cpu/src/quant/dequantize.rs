//! Rows of a quantized weight as numbers, straight from its planar tensors: for dequantize and embedding.
//!
//! The rule is the contract's, operation by operation, so results are exact on every path.

use super::strip::QuantParts;
use half::{bf16, f16};
use portolan_ops::{DType, QuantScheme, QuantSpec, TensorSpec};

/// Dequantizes row `row` into `dst`, which holds k values.
///
/// # Safety
/// `parts` are the tensors of `spec`, the row exists.
pub(crate) unsafe fn dequantize_row(spec: &QuantSpec, parts: &QuantParts, row: usize, dst: &mut [f32]) {
    let scheme = *spec.scheme();
    let block_row = row / scheme.block[0];
    let outer_columns = scheme.scale.outer().map_or(usize::MAX, |(_, columns)| columns);
    let entry = |spec: Option<&TensorSpec>, base: *const u8, column: usize| match spec {
        // SAFETY: the entry exists in its tensor.
        Some(spec) => unsafe { number(spec, base, block_row, column) },
        None => 0.0,
    };
    let factor = |spec: Option<&TensorSpec>, base, column: usize, inner: f32| match spec {
        Some(_) => QuantScheme::product(entry(spec, base, column / outer_columns), inner),
        None => inner,
    };
    for (group, values) in dst.chunks_mut(scheme.block[1]).enumerate() {
        let column = group * scheme.block[1];
        let scale = entry(Some(spec.scale()), parts.scale, group);
        let scale = factor(spec.outer(), parts.outer, column, scale);
        let offset = entry(spec.offset(), parts.offset, group);
        let offset = factor(spec.outer_offset(), parts.outer_offset, column, offset);
        for (i, value) in values.iter_mut().enumerate() {
            // SAFETY: the code exists.
            let code = unsafe { number(spec.codes(), parts.codes, row, column + i) };
            *value = scheme.value(code, scale, offset);
        }
    }
}

/// Element `[row, column]` as f32.
///
/// # Safety
/// It exists in the tensor at `base`.
#[inline]
unsafe fn number(spec: &TensorSpec, base: *const u8, row: usize, column: usize) -> f32 {
    let at = spec.layout().offset() + row * spec.strides()[0] + column * spec.strides()[1];
    // SAFETY: by contract.
    unsafe {
        match spec.dtype() {
            DType::F32 => *base.cast::<f32>().add(at),
            DType::F16 => (*base.cast::<f16>().add(at)).to_f32(),
            DType::BF16 => (*base.cast::<bf16>().add(at)).to_f32(),
            DType::U8 => f32::from(*base.add(at)),
            DType::I8 => f32::from(*base.cast::<i8>().add(at)),
            DType::U4 => f32::from(*base.add(at / 2) >> (at % 2 * 4) & 15),
            DType::I4 => f32::from((*base.add(at / 2) << (4 - at % 2 * 4)) as i8 >> 4),
            _ => super::panel::e8m0(*base.add(at)),
        }
    }
}
