//! f8 and f4 codes as f32 in registers, with AVX-512 and AVX2: panels for tiles. A single row is in
//! `small_float_row.rs`.
//!
//! An f8 code is shifted to where an f32 has its fields, its exponent raised by what their biases differ by, and
//! subnormal numbers taken from the line that they lie on; an f4 code is an index into its 16 numbers. No step has a
//! subnormal f32, which takes some processors hundreds of cycles. The scalar twin is `StripLayout::number`. With AVX-512
//! a panel holds the numbers alone, see `float::scales_apart`.

use super::int8::StripRef;
use super::strip::{BLOCK, ROWS, StripLayout};
use crate::simd::code::HALF_BYTES;
use portolan_ops::DType;
use std::arch::x86_64::*;

/// Which format; a constant of the kernels.
pub(super) const E4M3: u8 = 0;
pub(super) const E5M2: u8 = 1;
pub(super) const E2M1: u8 = 2;

/// From a code's last bit in the uppermost byte of a lane to where it belongs in an f32.
const fn down(format: u8) -> u32 {
    if format == E4M3 { 4 } else { 3 }
}

/// The fields of an f32 that come from a code: sign, exponent, mantissa.
pub(super) const fn fields(format: u8) -> i32 {
    (if format == E4M3 { 0x87f0_0000u32 } else { 0x8fe0_0000 }) as i32
}

/// The fields from which on a code is no finite number, sign apart.
const fn special(format: u8) -> i32 {
    if format == E4M3 { 0x07f0_0000 } else { 0x0f80_0000 }
}

/// What the exponent of an f32 has more, in its place.
pub(super) const fn lift(format: u8) -> i32 {
    if format == E4M3 { 120 << 23 } else { 112 << 23 }
}

/// The smallest normal number.
const fn normal(format: u8) -> f32 {
    if format == E4M3 { 1.0 / 64.0 } else { 1.0 / 16384.0 }
}

/// Codes a vector of 64 bytes holds for each of 16 rows.
pub(super) const fn columns(format: u8) -> usize {
    if format == E2M1 { 8 } else { 4 }
}

/// Whether some f8 code of a vector is no finite number: rare, so it is asked once for all of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn is_special<const FORMAT: u8>(codes: __m512i) -> bool {
    let bits = match FORMAT {
        E4M3 => _mm512_set1_epi8(0x7f),
        E5M2 => _mm512_set1_epi8(0x7c),
        _ => return false,
    };
    _mm512_cmpeq_epi8_mask(_mm512_and_si512(codes, bits), bits) != 0
}

/// Column `i` of a vector of codes, one row a lane, as numbers; `SPECIAL` if some may be no finite ones.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn numbers_512<const FORMAT: u8, const SPECIAL: bool>(
    codes: __m512i,
    i: i32,
    half_bytes: __m512,
) -> __m512 {
    if FORMAT == E2M1 {
        // The permutation reads the lowest four bits of an index. Even quads are low halves, odd ones high.
        let place = _mm512_set1_epi32(i % 4 * 8 + i / 4 * 4);
        return _mm512_permutexvar_ps(_mm512_srlv_epi32(codes, place), half_bytes);
    }
    let top = _mm512_sllv_epi32(codes, _mm512_set1_epi32(24 - 8 * i));
    let moved = if FORMAT == E4M3 {
        _mm512_srai_epi32::<{ down(E4M3) }>(top)
    } else {
        _mm512_srai_epi32::<{ down(E5M2) }>(top)
    };
    let bits = _mm512_and_si512(moved, _mm512_set1_epi32(fields(FORMAT)));
    let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
    let above = _mm512_castsi512_ps(_mm512_add_epi32(magnitude, _mm512_set1_epi32(lift(FORMAT))));
    let line = _mm512_fmsub_ps(above, _mm512_set1_ps(2.0), _mm512_set1_ps(normal(FORMAT)));
    let number = _mm512_castps_si512(_mm512_min_ps(above, line));
    // The sign of `bits`: (bits & sign) | number.
    let sign = _mm512_set1_epi32(i32::MIN);
    let number = _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xEA>(bits, sign, number));
    if !SPECIAL {
        return number;
    }
    // All exponent bits set make infinity or NaN of it.
    let beyond = _mm512_cmpge_epi32_mask(magnitude, _mm512_set1_epi32(special(FORMAT)));
    let ends = _mm512_or_si512(bits, _mm512_set1_epi32(0x7f80_0000));
    _mm512_mask_blend_ps(beyond, number, _mm512_castsi512_ps(ends))
}

/// As [`super::float::panel`], without scales.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn panel_avx512(
    layout: &StripLayout,
    strip: &StripRef,
    first: usize,
    count: usize,
    dst: *mut f32,
) {
    // SAFETY: passed on.
    unsafe {
        match layout.scheme.code {
            DType::F8E4M3 => panel_512::<E4M3>(strip, first, count, dst),
            DType::F8E5M2 => panel_512::<E5M2>(strip, first, count, dst),
            _ => panel_512::<E2M1>(strip, first, count, dst),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn panel_512<const FORMAT: u8>(strip: &StripRef, first: usize, count: usize, dst: *mut f32) {
    // SAFETY: blocks and columns are within what the pointers cover.
    unsafe {
        for b in first..first + count {
            for vector in 0..BLOCK / columns(FORMAT) {
                let at = b * strip.stride + vector * 64;
                let codes = _mm512_loadu_si512(strip.codes.add(at).cast());
                let c = vector * columns(FORMAT);
                let dst = dst.add(((b - first) * BLOCK + c) * ROWS);
                if is_special::<FORMAT>(codes) {
                    values_512::<FORMAT, true>(codes, dst);
                } else {
                    values_512::<FORMAT, false>(codes, dst);
                }
            }
        }
    }
}

/// The columns of a vector of codes as numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn values_512<const FORMAT: u8, const SPECIAL: bool>(codes: __m512i, dst: *mut f32) {
    // SAFETY: `dst` holds as many columns.
    unsafe {
        let half_bytes = _mm512_loadu_ps(HALF_BYTES.as_ptr());
        for i in 0..columns(FORMAT) {
            let number = numbers_512::<FORMAT, SPECIAL>(codes, i as i32, half_bytes);
            _mm512_storeu_ps(dst.add(i * ROWS), number);
        }
    }
}

/// Column `i` of 32 bytes of codes, eight rows, as numbers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn numbers_256<const FORMAT: u8>(codes: __m256i, i: i32, half_bytes: __m256) -> __m256 {
    if FORMAT == E2M1 {
        // The permutation reads three bits of an index: the magnitude. The fourth is the sign.
        let code = _mm256_srlv_epi32(codes, _mm256_set1_epi32(i % 4 * 8 + i / 4 * 4));
        let sign = _mm256_and_si256(_mm256_slli_epi32::<28>(code), _mm256_set1_epi32(i32::MIN));
        return _mm256_or_ps(_mm256_permutevar8x32_ps(half_bytes, code), _mm256_castsi256_ps(sign));
    }
    let top = _mm256_sllv_epi32(codes, _mm256_set1_epi32(24 - 8 * i));
    let moved = if FORMAT == E4M3 {
        _mm256_srai_epi32::<{ down(E4M3) as i32 }>(top)
    } else {
        _mm256_srai_epi32::<{ down(E5M2) as i32 }>(top)
    };
    let bits = _mm256_and_si256(moved, _mm256_set1_epi32(fields(FORMAT)));
    let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff));
    let above = _mm256_castsi256_ps(_mm256_add_epi32(magnitude, _mm256_set1_epi32(lift(FORMAT))));
    let line = _mm256_fmsub_ps(above, _mm256_set1_ps(2.0), _mm256_set1_ps(normal(FORMAT)));
    let sign = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(i32::MIN)));
    let number = _mm256_or_ps(_mm256_min_ps(above, line), sign);
    // All exponent bits set make infinity or NaN of what is no finite number.
    let beyond = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(special(FORMAT) - 1));
    let ends = _mm256_or_si256(bits, _mm256_set1_epi32(0x7f80_0000));
    _mm256_blendv_ps(number, _mm256_castsi256_ps(ends), _mm256_castsi256_ps(beyond))
}

/// As [`super::float::panel`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn panel_avx2(
    layout: &StripLayout,
    strip: &StripRef,
    first: usize,
    count: usize,
    dst: *mut f32,
) {
    // SAFETY: passed on.
    unsafe {
        match layout.scheme.code {
            DType::F8E4M3 => panel_256::<E4M3>(layout, strip, first, count, dst),
            DType::F8E5M2 => panel_256::<E5M2>(layout, strip, first, count, dst),
            _ => panel_256::<E2M1>(layout, strip, first, count, dst),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panel_256<const FORMAT: u8>(
    layout: &StripLayout,
    strip: &StripRef,
    first: usize,
    count: usize,
    dst: *mut f32,
) {
    let parts = layout.parts_of_block();
    let each = columns(FORMAT);
    // SAFETY: blocks, parts and columns are within what the pointers cover.
    unsafe {
        let half_bytes = _mm256_loadu_ps(HALF_BYTES.as_ptr());
        for b in first..first + count {
            for (half, vector) in (0..BLOCK / each * 2).map(|i| (i % 2, i / 2)) {
                let at = b * strip.stride + vector * 64 + half * 32;
                let codes = _mm256_loadu_si256(strip.codes.add(at).cast());
                for i in 0..each {
                    let c = vector * each + i;
                    let scale = strip.scales.add((b * parts + c * parts / BLOCK) * ROWS + half * 8);
                    let number = numbers_256::<FORMAT>(codes, i as i32, half_bytes);
                    let value = _mm256_mul_ps(number, _mm256_loadu_ps(scale));
                    _mm256_storeu_ps(dst.add(((b - first) * BLOCK + c) * ROWS + half * 8), value);
                }
            }
        }
    }
}
