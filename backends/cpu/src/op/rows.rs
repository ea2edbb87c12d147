//! Rows of a weight as f32, and f32 as a row of an output: what embedding and dequantize share.

use crate::Isa;
use crate::quant::{QuantParts, dequantize_row};
use crate::rows::with_float;
use crate::simd::{Kernel, Lanes, Stored, dispatch};
use half::{bf16, f16};
use portolan_ops::{DType, TensorSpec, WeightSpec};

/// Where a weight's tensors lie.
#[derive(Clone, Copy)]
pub(crate) enum RowSource {
    Dense(*const u8),
    Quant(QuantParts),
}

// SAFETY: the addresses are only read, by tasks of a call whose operands are alive.
unsafe impl Sync for RowSource {}

/// Reads row `row` of a weight, exactly; `past` the caches where it is quantized and `dst` is aligned.
///
/// # Safety
/// `source` holds the tensors of `weight`, which is not packed and has that row; `dst` holds k values; `isa` is
/// available.
pub(crate) unsafe fn load_row(
    isa: Isa,
    weight: &WeightSpec,
    source: &RowSource,
    row: usize,
    dst: &mut [f32],
    past: bool,
) {
    match (weight, source) {
        (WeightSpec::Dense(spec), RowSource::Dense(base)) => {
            let start = spec.layout().offset() + row * spec.strides()[0];
            for (i, value) in dst.iter_mut().enumerate() {
                let at = start + i * spec.strides()[1];
                // SAFETY: the element lies within the weight, as the caller says.
                *value = unsafe {
                    match spec.dtype() {
                        DType::F16 => (*base.cast::<f16>().add(at)).to_f32(),
                        DType::BF16 => (*base.cast::<bf16>().add(at)).to_f32(),
                        _ => *base.cast::<f32>().add(at),
                    }
                };
            }
        }
        // SAFETY: the caller's promise.
        (WeightSpec::Quant(spec), RowSource::Quant(parts)) => unsafe {
            dequantize_row(isa, spec, parts, row, dst, past)
        },
        _ => {}
    }
}

/// Writes values, rounded to nearest even, as a row of an output that begins at element `start`.
///
/// # Safety
/// `base` is the output's first byte and the row's elements lie within it; `isa` is available.
pub(crate) unsafe fn store_row(isa: Isa, out: &TensorSpec, base: *mut u8, start: usize, values: &[f32]) {
    let stride = out.strides().last().copied().unwrap_or(1);
    with_float!(out.dtype(), T => {
        let to = base.cast::<T>().wrapping_add(start);
        if stride == 1 || values.len() == 1 {
            dispatch(isa, Store { to, values });
        } else {
            for (i, &value) in values.iter().enumerate() {
                // SAFETY: the element lies within the output, as the caller says.
                unsafe { to.add(i * stride).write_unaligned(T::of_f32(value)) };
            }
        }
    });
}

/// Stores neighbours.
struct Store<'a, T> {
    to: *mut T,
    values: &'a [f32],
}

impl<T: Stored> Kernel for Store<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for (i, part) in self.values.chunks(L::LEN).enumerate() {
            let to = self.to.wrapping_add(i * L::LEN);
            // SAFETY: the part is as long as what is loaded; as many elements lie within the output.
            unsafe {
                let lanes = L::load_partial(part.as_ptr(), part.len());
                if part.len() == L::LEN {
                    T::store(lanes, to);
                } else {
                    T::store_partial(lanes, to, part.len());
                }
            }
        }
    }
}

/// The place of element `index` of a tensor, in logical order.
pub(crate) fn element(spec: &TensorSpec, index: usize) -> usize {
    let mut rest = index;
    let mut at = spec.layout().offset();
    for (&dim, &stride) in spec.dims().iter().zip(spec.strides()).rev() {
        at += rest % dim.max(1) * stride;
        rest /= dim.max(1);
    }
    at
}
