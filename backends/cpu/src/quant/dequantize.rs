//! Rows of a quantized weight as numbers, straight from its planar tensors: for dequantize and embedding.
//!
//! The rule is the contract's, operation by operation, so results are exact on every path.

use super::strip::QuantParts;
use crate::Isa;
use crate::simd::code::{self, Code, with_code};
use crate::simd::{Kernel, Lanes, dispatch};
use half::{bf16, f16};
use portolan_ops::codec::code_value;
use portolan_ops::{DType, Offset, QuantScheme, QuantSpec, TensorSpec};

/// Dequantizes row `row` into `dst`, which holds k values.
///
/// # Safety
/// `parts` are the tensors of `spec`, the row exists; `isa` is available.
pub(crate) unsafe fn dequantize_row(
    isa: Isa,
    spec: &QuantSpec,
    parts: &QuantParts,
    row: usize,
    dst: &mut [f32],
) {
    with_code!(spec.scheme().code, C => {
        dispatch(isa, Row::<C> { spec, parts, row, dst, code: core::marker::PhantomData })
    }, _ => ());
}

struct Row<'a, C> {
    spec: &'a QuantSpec,
    parts: &'a QuantParts,
    row: usize,
    dst: &'a mut [f32],
    code: core::marker::PhantomData<C>,
}

impl<C: Code> Kernel for Row<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (spec, parts) = (self.spec, self.parts);
        let scheme = *spec.scheme();
        let block_row = self.row / scheme.block[0];
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
        let start = place(spec.codes(), self.row, 0);
        for (group, values) in self.dst.chunks_mut(scheme.block[1]).enumerate() {
            let column = group * scheme.block[1];
            let scale = entry(Some(spec.scale()), parts.scale, group);
            let scale = L::splat(factor(spec.outer(), parts.outer, column, scale));
            let offset = entry(spec.offset(), parts.offset, group);
            let offset = L::splat(factor(spec.outer_offset(), parts.outer_offset, column, offset));
            for (i, part) in values.chunks_mut(L::LEN).enumerate() {
                let at = start + column + i * L::LEN;
                // SAFETY: the codes exist, and the part is as long as what is stored.
                unsafe {
                    let codes = code::load::<L, C>(parts.codes, at, part.len());
                    // Each operation is rounded on its own, as `QuantScheme::value` says.
                    let value = match scheme.offset {
                        Offset::None => codes.mul(scale),
                        Offset::Min => codes.mul(scale).add(offset),
                        Offset::ZeroPoint => codes.sub(offset).mul(scale),
                    };
                    value.store_partial(part.as_mut_ptr(), part.len());
                }
            }
        }
    }
}

/// Position of an element.
#[inline(always)]
fn place(spec: &TensorSpec, row: usize, column: usize) -> usize {
    spec.layout().offset() + row * spec.strides()[0] + column * spec.strides()[1]
}

/// Element `[row, column]` of a tensor of scales or offsets, as f32.
///
/// # Safety
/// It exists in the tensor at `base`.
#[inline(always)]
pub(crate) unsafe fn number(spec: &TensorSpec, base: *const u8, row: usize, column: usize) -> f32 {
    let at = place(spec, row, column);
    // SAFETY: by contract.
    unsafe {
        match spec.dtype() {
            DType::F32 => *base.cast::<f32>().add(at),
            DType::F16 => (*base.cast::<f16>().add(at)).to_f32(),
            DType::BF16 => (*base.cast::<bf16>().add(at)).to_f32(),
            dtype => code_value(dtype, *base.add(at)).unwrap_or(f32::NAN),
        }
    }
}
