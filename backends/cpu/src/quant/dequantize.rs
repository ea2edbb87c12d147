//! Rows of a quantized weight as numbers, straight from its planar tensors: for dequantize and embedding.
//!
//! The rule is the contract's, operation by operation, so results are exact on every path. Scales are read as many
//! groups at a time as a vector holds.

use super::strip::QuantParts;
use crate::Isa;
use crate::rows;
use crate::simd::code::{self, Code, with_code};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::Value;
use half::{bf16, f16};
use portolan_ops::codec::code_value;
use portolan_ops::{DType, Offset, QuantScheme, QuantSpec, TensorSpec};

/// Dequantizes row `row` into `dst`, which holds k values: `past` the caches if it is wanted and `dst` is aligned.
///
/// # Safety
/// `parts` are the tensors of `spec`, the row exists; `isa` is available.
pub(crate) unsafe fn dequantize_row(
    isa: Isa,
    spec: &QuantSpec,
    parts: &QuantParts,
    row: usize,
    dst: &mut [f32],
    past: bool,
) {
    with_code!(spec.scheme().code, C => {
        dispatch(isa, Row::<C> { spec, parts, row, dst, past, code: core::marker::PhantomData })
    }, _ => ());
}

struct Row<'a, C> {
    spec: &'a QuantSpec,
    parts: &'a QuantParts,
    row: usize,
    dst: &'a mut [f32],
    past: bool,
    code: core::marker::PhantomData<C>,
}

impl<C: Code> Kernel for Row<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (spec, parts) = (self.spec, self.parts);
        let scheme = *spec.scheme();
        let row = self.row / scheme.block[0];
        let scales = Entries { spec: Some(spec.scale()), base: parts.scale, row };
        let offsets = Entries { spec: spec.offset(), base: parts.offset, row };
        let group = scheme.block[1];
        let start = place(spec.codes(), self.row, 0);
        let aligned = (self.dst.as_ptr() as usize).is_multiple_of(L::LEN * size_of::<f32>());
        let past = self.past && aligned && group.is_multiple_of(L::LEN);
        for (i, values) in self.dst.chunks_mut(group.saturating_mul(L::LEN)).enumerate() {
            let (first, count) = (i * L::LEN, values.len().div_ceil(group));
            // SAFETY: the groups exist, and so do their factors.
            let (scales, offsets) = unsafe {
                let (mut scales, mut offsets) =
                    (scales.load::<L>(first, count), offsets.load::<L>(first, count));
                scale_by(spec.outer(), parts.outer, row, &scheme, first, &mut scales[..count]);
                scale_by(spec.outer_offset(), parts.outer_offset, row, &scheme, first, &mut offsets[..count]);
                (scales, offsets)
            };
            // A macro, since a closure would be compiled without the instructions of the kernel.
            macro_rules! groups {
                ($whole:literal, $groups:expr) => {
                    for (g, values) in $groups.enumerate() {
                        let rule = (scheme.offset, [L::splat(scales[g]), L::splat(offsets[g])]);
                        let start = start + (first + g) * group;
                        // SAFETY: the codes exist.
                        unsafe { convert::<L, C, $whole>(parts.codes, start, rule, values, past) };
                    }
                };
            }
            let whole = [group, values.len()].iter().all(|n| n.is_multiple_of(L::LEN));
            match whole && (!C::HALF || start.is_multiple_of(2)) {
                // A length that is known is a loop less.
                true if group == 32 && values.len().is_multiple_of(32) => {
                    groups!(true, values.chunks_exact_mut(32));
                }
                true => groups!(true, values.chunks_mut(group)),
                false => groups!(false, values.chunks_mut(group)),
            }
        }
        if past {
            L::finish_past();
        }
    }
}

/// What codes stand for, given the scale of their group and its minimum or zero point. Each operation is rounded on
/// its own, as `QuantScheme::value` says.
#[inline(always)]
fn value<L: Lanes>(codes: L, (offset, [scale, shift]): (Offset, [L; 2])) -> L {
    match offset {
        Offset::None => codes.mul(scale),
        Offset::Min => codes.mul(scale).add(shift),
        Offset::ZeroPoint => codes.sub(shift).mul(scale),
    }
}

/// Codes of one group, from element `start` on, as numbers; `WHOLE`: they are whole vectors and begin with a whole byte.
/// Written `past` the caches if those are wanted, and `values` aligned.
///
/// # Safety
/// The codes exist.
#[inline(always)]
unsafe fn convert<L: Lanes, C: Code, const WHOLE: bool>(
    codes: *const u8,
    start: usize,
    rule: (Offset, [L; 2]),
    values: &mut [f32],
    past: bool,
) {
    for (i, part) in values.chunks_mut(L::LEN).enumerate() {
        let at = start + i * L::LEN;
        // SAFETY: the codes exist, and the part is as long as what is stored.
        unsafe {
            let (len, to) = (if WHOLE { L::LEN } else { part.len() }, part.as_mut_ptr());
            let codes = match (WHOLE, C::HALF) {
                (true, true) => C::decode(L::load_nibbles(codes.add(at / 2))),
                (true, false) => C::decode(L::load_bytes(codes.add(at))),
                _ => code::load::<L, C>(codes, at, len),
            };
            let value = value(codes, rule);
            if past && len == L::LEN { value.store_past(to) } else { rows::store(to, len, value) }
        }
    }
}

/// A row of a tensor with one entry a group, if there is that tensor.
#[derive(Clone, Copy)]
struct Entries<'a> {
    spec: Option<&'a TensorSpec>,
    base: *const u8,
    row: usize,
}

impl Entries<'_> {
    /// Entries `first .. first + count`, at most a vector of them, as f32; zeros where there is no tensor.
    ///
    /// # Safety
    /// They exist.
    #[inline(always)]
    unsafe fn load<L: Lanes>(&self, first: usize, count: usize) -> [f32; 16] {
        let Some(spec) = self.spec else { return [0.0; 16] };
        let (at, base) = (place(spec, self.row, first), self.base);
        let mut entries = [0.0; 16];
        // SAFETY: by contract.
        unsafe { f32::load::<L>(spec.dtype(), base, at, spec.strides()[1], &mut entries[..count]) };
        entries
    }
}

/// Multiplies the entries of groups from `first` on by their factors, if there are any.
///
/// # Safety
/// The factors exist.
#[inline(always)]
unsafe fn scale_by(
    factors: Option<&TensorSpec>,
    base: *const u8,
    row: usize,
    scheme: &QuantScheme,
    first: usize,
    entries: &mut [f32],
) {
    let (Some(spec), Some((_, columns))) = (factors, scheme.scale.outer()) else { return };
    let groups = columns / scheme.block[1];
    for (i, entry) in entries.iter_mut().enumerate() {
        // SAFETY: by contract.
        *entry = QuantScheme::product(unsafe { number(spec, base, row, (first + i) / groups) }, *entry);
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
unsafe fn number(spec: &TensorSpec, base: *const u8, row: usize, column: usize) -> f32 {
    // SAFETY: by contract.
    unsafe { number_at(spec.dtype(), base, place(spec, row, column)) }
}

/// Element `at` as f32.
///
/// # Safety
/// It exists from `base` on.
pub(super) unsafe fn number_at(dtype: DType, base: *const u8, at: usize) -> f32 {
    // SAFETY: by contract.
    unsafe {
        match dtype {
            DType::F32 => *base.cast::<f32>().add(at),
            DType::F16 => (*base.cast::<f16>().add(at)).to_f32(),
            DType::BF16 => (*base.cast::<bf16>().add(at)).to_f32(),
            dtype => code_value(dtype, *base.add(at)).unwrap_or(f32::NAN),
        }
    }
}
