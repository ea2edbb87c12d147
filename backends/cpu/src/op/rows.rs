//! Rows of a weight as f32, and f32 as a row of an output: what embedding and dequantize share.

use crate::Isa;
use crate::quant::{QuantParts, dequantize_row};
use crate::rows::{Row, Rows};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::Value;
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
            dispatch(isa, Read { row: Rows::new(spec, *base).row(row), dst });
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
    dispatch(isa, Store { dtype: out.dtype(), base, start, stride, values });
}

struct Read<'a> {
    row: Row<'a>,
    dst: &'a mut [f32],
}

impl Kernel for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: the row lies within the weight and has as many elements, as the caller of `load_row` says.
        unsafe { self.row.copy::<L>(0, self.dst) };
    }
}

struct Store<'a> {
    dtype: DType,
    base: *mut u8,
    start: usize,
    stride: usize,
    values: &'a [f32],
}

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: the row's elements lie within the output, as the caller of `store_row` says.
        unsafe { f32::store::<L>(self.dtype, self.base, self.start, self.stride, self.values) };
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
