//! The product of a single row with f8 and f4 codes, in AVX-512 registers: what decoding a token is bound by.
//!
//! Four strips at once hide the latency of their sums; each is a run of memory of its own, asked for half a page ahead.
//! Operations and their order are those of panels and tiles (`small_float_x86.rs`, `float_x86.rs`), so that a row
//! has the same bits in every batch: here codes only become numbers in fewer of the instructions that this loop is
//! short of, shifts and permutations.

use super::small_float_x86::{E2M1, E4M3, E5M2, columns, fields, lift, numbers_512};
use super::strip::{BLOCK, ROWS, StripLayout};
use crate::simd::code::HALF_BYTES;
use portolan_ops::DType;
use portolan_ops::codec::SmallFloat;
use std::arch::x86_64::*;

/// Bytes between what is read and what is asked for. On Zen 4 from 2 to 4 KiB on the latency of memory is hidden.
const AHEAD: usize = 2048;

/// Whether [`row`] takes such scales: whole blocks share them, and they are single numbers.
pub(crate) fn fits(layout: &StripLayout) -> bool {
    layout.parts_of_block() == 1 && layout.scheme.scale.outer().is_none()
}

/// As [`super::float::single_row`], for a layout that [`fits`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn row(layout: &StripLayout, strips: &[*const u8], x: *const f32, acc: *mut f32) {
    // SAFETY: passed on.
    unsafe {
        match layout.scheme.code {
            DType::F8E4M3 => groups::<E4M3>(layout, strips, x, acc),
            DType::F8E5M2 => groups::<E5M2>(layout, strips, x, acc),
            _ => groups::<E2M1>(layout, strips, x, acc),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn groups<const FORMAT: u8>(layout: &StripLayout, strips: &[*const u8], x: *const f32, acc: *mut f32) {
    let (fours, rest) = strips.as_chunks::<4>();
    // SAFETY: passed on, each strip with its sums.
    unsafe {
        for (i, strips) in fours.iter().enumerate() {
            several::<FORMAT, 4>(layout, strips, x, acc.add(i * 4 * ROWS));
        }
        for (i, &strip) in rest.iter().enumerate() {
            several::<FORMAT, 1>(layout, &[strip], x, acc.add((fours.len() * 4 + i) * ROWS));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn several<const FORMAT: u8, const STRIPS: usize>(
    layout: &StripLayout,
    strips: &[*const u8; STRIPS],
    x: *const f32,
    acc: *mut f32,
) {
    let dtype = layout.scheme.scale.dtype();
    let stride = layout.group_stride(dtype);
    let blocks_of_group = if layout.groups <= 1 { usize::MAX } else { layout.scheme.block[1] / BLOCK };
    let (mut group, mut left) = (0, blocks_of_group);
    // SAFETY: blocks, groups and columns are within what the pointers cover.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); STRIPS];
        for (s, sum) in sums.iter_mut().enumerate() {
            *sum = _mm512_loadu_ps(acc.add(s * ROWS));
        }
        for b in 0..layout.blocks {
            // Behind the end of a strip lies the next one of these; what comes next is behind all of them.
            let within = b * layout.stride + AHEAD < layout.strip_bytes;
            let ahead = AHEAD + if within { 0 } else { (STRIPS - 1) * layout.strip_bytes };
            if left == 0 {
                (group, left) = (group + 1, blocks_of_group);
            }
            left -= 1;
            let mut codes = *strips;
            codes.iter_mut().for_each(|codes| *codes = codes.wrapping_add(b * layout.stride));
            let x = x.add(b * BLOCK);
            let (mut parts, special) = match FORMAT {
                E2M1 => (half_bytes(&codes, x, ahead), false),
                _ => bytes::<FORMAT, STRIPS>(&codes, x, ahead),
            };
            if special {
                parts = any_bytes::<FORMAT, STRIPS>(&codes, x, ahead);
            }
            for (s, sum) in sums.iter_mut().enumerate() {
                let scale = scales(dtype, strips[s].add(layout.scale_at + group * stride));
                *sum = _mm512_fmadd_ps(parts[s], scale, *sum);
            }
        }
        for (s, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(acc.add(s * ROWS), sum);
        }
    }
}

/// Scales of 16 rows.
///
/// # Safety
/// `from` has 16 entries.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn scales(dtype: DType, from: *const u8) -> __m512 {
    // SAFETY: by contract.
    unsafe {
        match dtype {
            DType::F32 => _mm512_loadu_ps(from.cast()),
            DType::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())),
            DType::BF16 => {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
            _ => {
                // 2^(code − 127); both ends, 2^−127 and NaN, have the topmost bit of the mantissa.
                let top = _mm512_set1_epi32(1 << 22);
                let infinite = _mm512_set1_epi32(0x7f80_0000);
                let moved = _mm512_slli_epi32::<23>(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())));
                let number = _mm512_max_epu32(moved, top);
                let nan = _mm512_cmpeq_epi32_mask(moved, infinite);
                _mm512_castsi512_ps(_mm512_mask_or_epi32(number, nan, number, top))
            }
        }
    }
}

/// Codes of vector `vector` of a block, and what lies ahead of them asked for.
///
/// # Safety
/// The block has that vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn vector(block: *const u8, vector: usize, ahead: usize) -> __m512i {
    let from = block.wrapping_add(vector * 64);
    // SAFETY: by contract; a prefetch reads nothing and faults nowhere.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(ahead).cast());
        _mm512_loadu_si512(from.cast())
    }
}

/// The sums of a block of f4 codes with 32 of x, without scales.
///
/// # Safety
/// Block and x have 32 columns; three bytes behind a block can be read, as everywhere: its scales come behind it.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn half_bytes<const STRIPS: usize>(
    blocks: &[*const u8; STRIPS],
    x: *const f32,
    ahead: usize,
) -> [__m512; STRIPS] {
    let mut sums = [_mm512_setzero_ps(); STRIPS];
    // SAFETY: by contract.
    unsafe {
        let numbers = _mm512_loadu_ps(HALF_BYTES.as_ptr());
        for v in 0..BLOCK / columns(E2M1) {
            // A permutation takes the lowest four bits of a lane. To bring each byte there costs a load, no shift.
            let mut codes = [[_mm512_setzero_si512(); 4]; STRIPS];
            for (codes, &block) in codes.iter_mut().zip(blocks) {
                codes[0] = vector(block, v, ahead);
                for (i, codes) in codes.iter_mut().enumerate().skip(1) {
                    *codes = _mm512_loadu_si512(block.add(v * 64 + i).cast());
                }
            }
            for i in 0..columns(E2M1) {
                let x = _mm512_set1_ps(*x.add(v * columns(E2M1) + i));
                for (sum, codes) in sums.iter_mut().zip(&codes) {
                    let code = if i < 4 { codes[i] } else { _mm512_srli_epi32::<4>(codes[i - 4]) };
                    *sum = _mm512_fmadd_ps(_mm512_permutexvar_ps(code, numbers), x, *sum);
                }
            }
        }
    }
    sums
}

/// The sums of a block of f8 codes with 32 of x, without scales, and whether some code is no finite number: then
/// they are not right.
///
/// # Safety
/// Block and x have 32 columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn bytes<const FORMAT: u8, const STRIPS: usize>(
    blocks: &[*const u8; STRIPS],
    x: *const f32,
    ahead: usize,
) -> ([__m512; STRIPS], bool) {
    let mut sums = [_mm512_setzero_ps(); STRIPS];
    let special = _mm512_set1_epi8(if FORMAT == E4M3 { 0x7f } else { 0x7c });
    let mut largest = _mm512_setzero_si512();
    // SAFETY: by contract.
    unsafe {
        let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
        for v in 0..BLOCK / columns(FORMAT) {
            // Two codes of a lane at once, as the upper halves of their numbers.
            let mut even = [_mm512_setzero_si512(); STRIPS];
            let mut odd = [_mm512_setzero_si512(); STRIPS];
            for s in 0..STRIPS {
                let codes = vector(blocks[s], v, ahead);
                largest = _mm512_max_epu8(largest, _mm512_and_si512(codes, special));
                even[s] = upper_halves::<FORMAT>(codes, _mm512_slli_epi16::<8>(codes));
                odd[s] = upper_halves::<FORMAT>(_mm512_srli_epi16::<8>(codes), codes);
            }
            for i in 0..4 {
                let x = _mm512_set1_ps(*x.add(v * columns(FORMAT) + i));
                for (s, sum) in sums.iter_mut().enumerate() {
                    let pair = if i % 2 == 0 { even[s] } else { odd[s] };
                    let number =
                        if i < 2 { _mm512_slli_epi32::<16>(pair) } else { _mm512_and_si512(pair, upper) };
                    *sum = _mm512_fmadd_ps(_mm512_castsi512_ps(number), x, *sum);
                }
            }
        }
    }
    (sums, _mm512_cmpeq_epi8_mask(largest, special) != 0)
}

/// The upper halves of the f32 that codes stand for, which have nothing in the lower ones, one for each half of a lane;
/// `codes` have them in the low byte of the half, `top` in the high one.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn upper_halves<const FORMAT: u8>(codes: __m512i, top: __m512i) -> __m512i {
    let magnitude = _mm512_set1_epi16((fields(FORMAT) >> 16) as i16 & 0x7fff);
    let moved = if FORMAT == E4M3 { _mm512_srli_epi16::<4>(top) } else { _mm512_srli_epi16::<3>(top) };
    let moved = _mm512_and_si512(moved, magnitude);
    let above = _mm512_add_epi16(moved, _mm512_set1_epi16((lift(FORMAT) >> 16) as i16));
    // Subnormal numbers are few: the mantissa says which.
    let exponent = _mm512_set1_epi16(if FORMAT == E4M3 { 0x7800 } else { 0x7c00 });
    let subnormal = _mm512_testn_epi16_mask(top, exponent);
    // SAFETY: the table has 64 bytes.
    let table = unsafe { _mm512_loadu_si512(const { subnormals(FORMAT) }.as_ptr().cast()) };
    let number = _mm512_mask_permutexvar_epi16(above, subnormal, codes, table);
    // (top & sign) | number
    _mm512_ternarylogic_epi32::<0xEA>(top, _mm512_set1_epi16(i16::MIN), number)
}

/// The upper halves of the numbers whose exponent is 0, sign apart, by mantissa; an index takes five bits.
const fn subnormals(format: u8) -> &'static [u16; 32] {
    const fn of(format: SmallFloat, count: usize) -> [u16; 32] {
        let mut halves = [0; 32];
        let mut code = 0;
        while code < count {
            halves[code] = (format.decode(code as u8).to_bits() >> 16) as u16;
            code += 1;
        }
        halves
    }
    static OF_E4M3: [u16; 32] = of(SmallFloat::E4M3, 8);
    static OF_E5M2: [u16; 32] = of(SmallFloat::E5M2, 4);
    if format == E4M3 { &OF_E4M3 } else { &OF_E5M2 }
}

/// As [`bytes`], for codes that may be no finite numbers.
#[cold]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn any_bytes<const FORMAT: u8, const STRIPS: usize>(
    blocks: &[*const u8; STRIPS],
    x: *const f32,
    ahead: usize,
) -> [__m512; STRIPS] {
    let mut sums = [_mm512_setzero_ps(); STRIPS];
    // SAFETY: by contract.
    unsafe {
        let half_bytes = _mm512_loadu_ps(HALF_BYTES.as_ptr());
        for c in 0..BLOCK {
            let (v, i) = (c / columns(FORMAT), c % columns(FORMAT));
            let x = _mm512_set1_ps(*x.add(c));
            for (sum, &block) in sums.iter_mut().zip(blocks) {
                let number = numbers_512::<FORMAT, true>(vector(block, v, ahead), i as i32, half_bytes);
                *sum = _mm512_fmadd_ps(number, x, *sum);
            }
        }
    }
    sums
}
