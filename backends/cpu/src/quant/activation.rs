//! The activations of a linear layer in the order tiles read them: int8 with scales and sums, or f32.
//!
//! Rows are cut into tiles of 12, 4 and 1; a tile's rows lie side by side for every block, so that a kernel
//! addresses them by constants.

use super::strip::BLOCK;
use crate::Isa;
use crate::simd::code::{Code, E4m3};
use crate::simd::{Kernel, Lanes, dispatch};
use half::{bf16, f16};
use portolan_ops::codec::{Overflow, SmallFloat};
use portolan_ops::{ActQuant, DType, TensorSpec};

/// Rows of a tile, largest first. 12 rows use 24 of 32 vector registers for sums: 12 of i32, 12 of f32.
pub(crate) const TILES: [usize; 3] = [12, 4, 1];

/// The tile of `row` among `rows`: its first row and its height.
pub(crate) fn tile_of(row: usize, rows: usize) -> (usize, usize) {
    let mut first = 0;
    for height in TILES {
        let end = first + (rows - first) / height * height;
        if row < end {
            return (first + (row - first) / height * height, height);
        }
        first = end;
    }
    (row, 1)
}

/// Calls `body(first, height)` for every tile of `rows`.
pub(crate) fn for_tiles(rows: usize, mut body: impl FnMut(usize, usize)) {
    let mut first = 0;
    for height in TILES {
        while rows - first >= height {
            body(first, height);
            first += height;
        }
    }
}

/// Element offset of row `row` of a tensor whose leading dimensions are rows.
pub(crate) fn row_offset(spec: &TensorSpec, mut row: usize) -> usize {
    let mut at = spec.layout().offset();
    let leading = spec.rank().saturating_sub(1);
    for (dim, stride) in spec.dims()[..leading].iter().zip(&spec.strides()[..leading]).rev() {
        at += row % dim * stride;
        row /= dim;
    }
    at
}

/// Copies row `row` of `spec` to `dst` as f32.
///
/// # Safety
/// `base` is the tensor's allocation, `dst` holds its last extent.
pub(crate) unsafe fn read_row(spec: &TensorSpec, base: *const u8, row: usize, dst: *mut f32) {
    let (at, k) = (row_offset(spec, row), spec.shape().last());
    let step = spec.strides().last().copied().unwrap_or(1);
    if k == 0 {
        return;
    }
    // SAFETY: every element of the row lies within the tensor.
    unsafe {
        match spec.dtype() {
            DType::F32 if step == 1 => dst.copy_from_nonoverlapping(base.cast::<f32>().add(at), k),
            DType::F32 => (0..k).for_each(|i| *dst.add(i) = *base.cast::<f32>().add(at + i * step)),
            DType::F16 => {
                (0..k).for_each(|i| *dst.add(i) = (*base.cast::<f16>().add(at + i * step)).to_f32())
            }
            _ => (0..k).for_each(|i| *dst.add(i) = (*base.cast::<bf16>().add(at + i * step)).to_f32()),
        }
    }
}

/// Int8 activations of a chunk of rows; element `(tile, block, row in tile)` of every array is at
/// `tile.first · blocks + block · tile.height + row − tile.first`.
#[derive(Clone, Copy)]
pub(crate) struct Int8Rows {
    /// Codes, 32 to an element.
    pub(crate) codes: *mut i8,
    /// Scales.
    pub(crate) scale: *mut f32,
    /// `−bias · Σ codes`, for each part of the block.
    pub(crate) init: *mut i32,
    /// `scale · Σ codes` as f32 for minima, `Σ codes` as i32 for zero points.
    pub(crate) side: *mut i32,
    /// Blocks of a row.
    pub(crate) blocks: usize,
    /// Parts of a block: 1 or 2.
    pub(crate) parts: usize,
    /// Blocks of a row that share a scale.
    pub(crate) group: usize,
}

impl Int8Rows {
    /// Bytes for `rows` rows; every array starts on a cache line.
    pub(crate) fn bytes(rows: usize, blocks: usize, parts: usize) -> usize {
        rows * blocks * (BLOCK + 8 + 4 * parts) + 4 * 64
    }

    /// Lays the arrays out in `memory`.
    ///
    /// # Safety
    /// `memory` is aligned to 64 and holds [`Int8Rows::bytes`].
    pub(crate) unsafe fn new(
        memory: *mut u8,
        rows: usize,
        blocks: usize,
        parts: usize,
        group: usize,
    ) -> Self {
        let elements = rows * blocks;
        let line = |bytes: usize| bytes.next_multiple_of(64);
        let scale_at = elements * BLOCK;
        let side_at = scale_at + line(elements * 4);
        let init_at = side_at + line(elements * 4);
        // SAFETY: the three sizes and their padding were counted in `bytes`.
        unsafe {
            Self {
                codes: memory.cast(),
                scale: memory.add(scale_at).cast(),
                side: memory.add(side_at).cast(),
                init: memory.add(init_at).cast(),
                blocks,
                parts,
                group,
            }
        }
    }

    /// Rounds row `row` of `rows`, given as f32 and zero up to a whole block, by the contract of `ActQuant::round`.
    ///
    /// # Safety
    /// `x` holds `blocks · 32` f32; the row is this thread's alone; `isa` is available.
    pub(crate) unsafe fn write(
        &self,
        isa: Isa,
        row: usize,
        rows: usize,
        x: *const f32,
        bias: i32,
        zero_point: bool,
    ) {
        let (first, height) = tile_of(row, rows);
        let mut shared = 0.0;
        for block in 0..self.blocks {
            let at = first * self.blocks + block * height + (row - first);
            // SAFETY: `at` is below `rows · blocks`, the block within the row.
            unsafe {
                let (x, codes) = (x.add(block * BLOCK), self.codes.add(at * BLOCK));
                let (scale, sums) = if self.group == 1 {
                    round(isa, x, codes)
                } else {
                    if block.is_multiple_of(self.group) {
                        let len = self.group.min(self.blocks - block) * BLOCK;
                        shared = block_scale(isa, core::slice::from_raw_parts(x, len), 127.0);
                    }
                    (shared, round_by(isa, x, shared, codes))
                };
                *self.scale.add(at) = scale;
                let sum = sums[0] + sums[1];
                let side = if zero_point { sum } else { (scale * sum as f32).to_bits() as i32 };
                *self.side.add(at) = side;
                if self.parts == 1 {
                    *self.init.add(at) = -bias * sum;
                } else {
                    // Within a block, first part before second.
                    let init = first * self.blocks * 2 + block * height * 2 + (row - first);
                    *self.init.add(init) = -bias * sums[0];
                    *self.init.add(init + height) = -bias * sums[1];
                }
            }
        }
    }
}

/// Rounds 32 values; returns the scale and the sums of the first and the last 16 codes.
///
/// # Safety
/// `x` holds 32 f32, `codes` 32 bytes; `isa` is available.
pub(crate) unsafe fn round(isa: Isa, x: *const f32, codes: *mut i8) -> (f32, [i32; 2]) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => round_avx512(x, codes),
            _ => {
                let scale = block_scale(isa, core::slice::from_raw_parts(x, BLOCK), 127.0);
                (scale, round_by(isa, x, scale, codes))
            }
        }
    }
}

/// Rounds 32 values by a scale that is given; returns the sums of the first and the last 16 codes.
///
/// # Safety
/// As [`round`].
unsafe fn round_by(isa: Isa, x: *const f32, scale: f32, codes: *mut i8) -> [i32; 2] {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => round_by_avx512(x, scale, codes),
            _ => {
                let mut sums = [0; 2];
                for i in 0..BLOCK {
                    let code = if scale > 0.0 { (*x.add(i) / scale).round_ties_even() } else { 0.0 };
                    let code = code.clamp(-127.0, 127.0) as i8;
                    *codes.add(i) = code;
                    sums[i / (BLOCK / 2)] += i32::from(code);
                }
                sums
            }
        }
    }
}

/// The scale under which the largest of a group becomes `top`: NaN where one is no finite number.
fn block_scale(isa: Isa, x: &[f32], top: f32) -> f32 {
    largest_magnitude(isa, x) / top
}

/// The largest magnitude; NaN where one is no finite number.
pub(super) fn largest_magnitude(isa: Isa, x: &[f32]) -> f32 {
    dispatch(isa, Largest { x })
}

struct Largest<'a> {
    x: &'a [f32],
}

impl Kernel for Largest<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self) -> f32 {
        largest::<L>(self.x)
    }
}

/// As [`largest_magnitude`], inside a kernel.
#[inline(always)]
pub(super) fn largest<L: Lanes>(x: &[f32]) -> f32 {
    as_magnitude(L::largest_int(larger::<L>(L::splat_int(0), x)))
}

/// The largest bits of a magnitude so far, lane by lane. As integers, magnitudes order as numbers do, with infinities
/// and NaN above all.
#[inline(always)]
pub(super) fn larger<L: Lanes>(mut largest: L::Int, x: &[f32]) -> L::Int {
    let whole = x.len() / L::LEN * L::LEN;
    // SAFETY: the loads lie within the slice.
    unsafe {
        for i in (0..whole).step_by(L::LEN) {
            largest = L::max_int(largest, L::load(x.as_ptr().add(i)).abs().bits());
        }
        if whole < x.len() {
            let rest = L::load_partial(x.as_ptr().add(whole), x.len() - whole);
            largest = L::max_int(largest, rest.abs().bits());
        }
    }
    largest
}

/// The largest magnitude from its bits; NaN for what is no finite number.
#[inline(always)]
pub(super) fn as_magnitude(bits: i32) -> f32 {
    let size = f32::from_bits(bits as u32);
    if size.is_finite() { size } else { f32::NAN }
}

/// Replaces a group of activations by what its codes stand for, `scale · code`.
pub(crate) fn replace_by_codes(isa: Isa, values: &mut [f32], act_quant: ActQuant) {
    let float = matches!(act_quant, ActQuant::F8 { .. });
    let top = if float { SmallFloat::E4M3.largest() } else { 127.0 };
    let scale = block_scale(isa, values, top);
    if scale > 0.0 {
        dispatch(isa, Replace { values, scale, float });
    } else {
        values.fill(scale);
    }
}

struct Replace<'a> {
    values: &'a mut [f32],
    scale: f32,
    float: bool,
}

impl Kernel for Replace<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let scale = L::splat(self.scale);
        for part in self.values.chunks_mut(L::LEN) {
            // SAFETY: the part is as long as what is loaded and stored.
            unsafe {
                let q = L::load_partial(part.as_ptr(), part.len()).div(scale);
                let code = if self.float {
                    E4m3::decode::<L>(E4m3::encode(q, Overflow::Saturate))
                } else {
                    q.max(L::splat(-127.0)).min(L::splat(127.0)).round()
                };
                code.mul(scale).store_partial(part.as_mut_ptr(), part.len());
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn round_avx512(x: *const f32, codes: *mut i8) -> (f32, [i32; 2]) {
    use std::arch::x86_64::*;
    // SAFETY: 32 values and 32 codes, by contract.
    unsafe {
        let (a, b) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)));
        // As integers, magnitudes order as numbers do, with infinities and NaN above all.
        let magnitude = |v| _mm512_castps_si512(_mm512_abs_ps(v));
        let largest = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(magnitude(a), magnitude(b))));
        let scale = if largest.is_finite() { largest / 127.0 } else { f32::NAN };
        (scale, round_by_avx512(x, scale, codes))
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn round_by_avx512(x: *const f32, scale: f32, codes: *mut i8) -> [i32; 2] {
    use std::arch::x86_64::*;
    // SAFETY: 32 values and 32 codes, by contract.
    unsafe {
        let (a, b) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)));
        if scale.is_nan() || scale == 0.0 {
            _mm256_storeu_si256(codes.cast(), _mm256_setzero_si256());
            return [0; 2];
        }
        let s = _mm512_set1_ps(scale);
        // A quotient from the rounded reciprocal, corrected once by its remainder, is the rounded quotient as
        // long as nothing underflows (Markstein 1990): cheaper than two divisions.
        let quotient = |v| {
            if scale < 1e-25 {
                return _mm512_div_ps(v, s);
            }
            let reciprocal = _mm512_set1_ps(1.0 / scale);
            let q = _mm512_mul_ps(v, reciprocal);
            _mm512_fmadd_ps(_mm512_fnmadd_ps(q, s, v), reciprocal, q)
        };
        let limit = _mm512_set1_epi32(127);
        let code = |v| {
            let rounded = _mm512_cvtps_epi32(quotient(v));
            _mm512_max_epi32(_mm512_min_epi32(rounded, limit), _mm512_set1_epi32(-127))
        };
        let (a, b) = (code(a), code(b));
        _mm_storeu_si128(codes.cast(), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128(codes.add(16).cast(), _mm512_cvtepi32_epi8(b));
        [_mm512_reduce_add_epi32(a), _mm512_reduce_add_epi32(b)]
    }
}

/// Writes a row of f32 into its tile: column `c` of a tile is at `tile.first · columns + c · tile.height`.
///
/// # Safety
/// `x` holds `columns` f32, `dst` `rows · columns`; the row is this thread's alone.
pub(crate) unsafe fn write_f32(dst: *mut f32, row: usize, rows: usize, columns: usize, x: *const f32) {
    let (first, height) = tile_of(row, rows);
    for c in 0..columns {
        // SAFETY: within the tile.
        unsafe { *dst.add(first * columns + c * height + (row - first)) = *x.add(c) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once() {
        for rows in 0..60 {
            let mut next = 0;
            for_tiles(rows, |first, height| {
                assert_eq!(first, next);
                for row in first..first + height {
                    assert_eq!(tile_of(row, rows), (first, height));
                }
                next += height;
            });
            assert_eq!(next, rows);
        }
    }

    #[test]
    fn every_path_rounds_activations_as_the_contract_does() {
        let mut state = 7u32;
        let mut next = move || {
            state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            state
        };
        for round_number in 0..20_000 {
            let mut x: [f32; BLOCK] = core::array::from_fn(|_| (next() >> 8) as f32 / 8_388_608.0 - 1.0);
            match round_number % 6 {
                // Halves of the step, where ties are decided.
                0 => x = core::array::from_fn(|i| if i == 0 { 127.0 } else { (next() % 255) as f32 / 2.0 }),
                1 => x.iter_mut().for_each(|v| *v *= f32::from_bits((next() % 0x7000_0000) & 0x7f80_0000)),
                2 => x = core::array::from_fn(|_| f32::from_bits(next() % 2000)),
                3 if round_number % 12 == 3 => x[(next() % 32) as usize] = f32::INFINITY,
                4 if round_number % 24 == 4 => x[(next() % 32) as usize] = f32::NAN,
                _ => {}
            }
            let mut want = [1i8; BLOCK];
            let scale = portolan_ops::ActQuant::round(&x, &mut want);
            for isa in Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()) {
                let mut got = [1i8; BLOCK];
                // SAFETY: both arrays have 32 entries and the path is available.
                let (got_scale, sums) = unsafe { round(isa, x.as_ptr(), got.as_mut_ptr()) };
                assert_eq!((got, got_scale.to_bits()), (want, scale.to_bits()), "{isa:?} {x:?}");
                assert_eq!(sums[0] + sums[1], want.iter().map(|&c| i32::from(c)).sum::<i32>());
                let mut codes = [0u8; BLOCK];
                let f8_scale = ActQuant::round_f8(&x, &mut codes);
                let (mut int8, mut f8) = (x, x);
                replace_by_codes(isa, &mut int8, ActQuant::INT8);
                replace_by_codes(isa, &mut f8, ActQuant::F8_GROUP);
                for i in 0..BLOCK {
                    // NaN is NaN, whatever its bits; a zero may have either sign.
                    let same = |got: f32, want: f32| got == want || (got.is_nan() && want.is_nan());
                    assert!(same(int8[i], scale * f32::from(want[i])), "{isa:?} {x:?}");
                    let number = SmallFloat::E4M3.decode(codes[i]);
                    assert!(same(f8[i], f8_scale * number), "{isa:?} {x:?}");
                }
            }
        }
    }

    #[test]
    fn a_scale_for_several_blocks_is_that_of_the_whole_group() {
        let blocks = 5;
        let x: Vec<f32> = (0..blocks * BLOCK).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.require().is_ok()) {
            for group in [1usize, 4, usize::MAX / BLOCK] {
                let mut memory = vec![0u64; Int8Rows::bytes(1, blocks, 1) / 8 + 16];
                let start = memory.as_mut_ptr().cast::<u8>();
                // SAFETY: the memory holds one row of five blocks behind its first aligned byte.
                let rows = unsafe {
                    let rows = Int8Rows::new(start.add(start.align_offset(64)), 1, blocks, 1, group);
                    rows.write(isa, 0, 1, x.as_ptr(), 0, true);
                    rows
                };
                for (g, part) in x.chunks(group.min(blocks) * BLOCK).enumerate() {
                    let mut want = vec![0i8; part.len()];
                    let scale = portolan_ops::ActQuant::round(part, &mut want);
                    for (i, codes) in want.chunks(BLOCK).enumerate() {
                        let block = g * group.min(blocks) + i;
                        // SAFETY: written above.
                        unsafe {
                            assert_eq!(*rows.scale.add(block), scale);
                            let got = core::slice::from_raw_parts(rows.codes.add(block * BLOCK), BLOCK);
                            assert_eq!(got, codes, "{isa:?} {group}");
                            assert_eq!(
                                *rows.side.add(block),
                                codes.iter().map(|&c| i32::from(c)).sum::<i32>()
                            );
                        }
                    }
                }
            }
        }
    }
}
