//! Packing with AVX2 and AVX-512: lanes side by side are copied, products side by side are transposed.
//!
//! Any other strides go to the portable forms in `pack`, which say what the packed order is.

use super::pack::{self, Strip};
use portolan_ops::DType;
use std::arch::x86_64::*;

/// Source element types, as constant parameters.
pub(super) const F32: u8 = 0;
pub(super) const F16: u8 = 1;
pub(super) const BF16: u8 = 2;
/// i8, packed as fours; of a with 128 added, so that they are u8.
const I8_B: u8 = 3;
const I8_A: u8 = 4;

/// Bytes of a source element.
const fn size(source: u8) -> usize {
    match source {
        F32 => 4,
        F16 | BF16 => 2,
        _ => 1,
    }
}

/// Products in one 32-bit packed element.
const fn group(source: u8) -> usize {
    if matches!(source, I8_A | I8_B) { 4 } else { 1 }
}

const fn flip(source: u8) -> i32 {
    if source == I8_A { 0x8080_8080_u32 as i32 } else { 0 }
}

/// The portable form, for any strides.
unsafe fn portable<const S: u8>(strip: &Strip, dst: *mut u8) {
    // SAFETY: passed on.
    unsafe {
        match S {
            F16 => pack::floats(DType::F16)(strip, dst),
            BF16 => pack::floats(DType::BF16)(strip, dst),
            F32 => pack::floats(DType::F32)(strip, dst),
            _ => pack::i8_fours(strip, dst, flip(S)),
        }
    }
}

/// The lowest `n` bits.
fn low_bits(n: usize) -> u16 {
    ((1u32 << n) - 1) as u16
}

/// Packs floats as f32.
///
/// # Safety
/// As `pack::floats`, on a processor with AVX-512.
pub(super) unsafe fn avx512_floats<const S: u8>(strip: &Strip, dst: *mut u8) {
    // SAFETY: passed on.
    unsafe {
        match (strip.lane_stride, strip.k_stride) {
            (1, _) => avx512_side_by_side::<S>(strip, dst.cast()),
            (_, 1) => avx512_transposed::<S>(strip, dst.cast()),
            _ => portable::<S>(strip, dst),
        }
    }
}

/// Packs i8 of a as fours of u8: the value plus 128.
///
/// # Safety
/// As `pack::i8_fours`, on a processor with AVX-512.
pub(super) unsafe fn avx512_i8_a(strip: &Strip, dst: *mut u8) {
    // SAFETY: passed on.
    unsafe { avx512_i8::<I8_A>(strip, dst) }
}

/// Packs i8 of b as fours of i8, behind a header that takes back the 128 in a: `−128 · Σ_k b[k, lane]`.
///
/// # Safety
/// As `pack::i8_fours`, with room for the header, on a processor with AVX-512 and VNNI.
pub(super) unsafe fn avx512_i8_b(strip: &Strip, dst: *mut u8) {
    // SAFETY: passed on; every panel starts with its header of `width` elements.
    unsafe {
        avx512_i8::<I8_B>(strip, dst.cast::<i32>().add(strip.width).cast());
        for index in 0..strip.panels() {
            let panel = dst.cast::<i32>().add(index * strip.panel);
            avx512_offsets(strip.k.div_ceil(4), strip.width, panel);
        }
    }
}

unsafe fn avx512_i8<const S: u8>(strip: &Strip, dst: *mut u8) {
    // SAFETY: passed on.
    unsafe {
        match (strip.lane_stride, strip.k_stride) {
            (_, 1) => avx512_transposed::<S>(strip, dst.cast()),
            (1, _) => avx512_interleaved::<S>(strip, dst.cast()),
            _ => portable::<S>(strip, dst),
        }
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn avx512_offsets(steps: usize, width: usize, panel: *mut i32) {
    let ones = _mm512_set1_epi8(-128);
    for first in (0..width).step_by(16) {
        let mut sum = _mm512_setzero_si512();
        // SAFETY: the panel holds its header and `steps · width` elements; the width is a multiple of 16.
        unsafe {
            for step in 0..steps {
                let values = _mm512_loadu_epi32(panel.add(width * (1 + step) + first));
                sum = _mm512_dpbusd_epi32(sum, ones, values);
            }
            _mm512_storeu_epi32(panel.add(first), _mm512_sub_epi32(_mm512_setzero_si512(), sum));
        }
    }
}

/// The first `n` elements at `p` (up to 16 floats or 64 i8) as 32-bit packed elements, zeros behind.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn load16<const S: u8>(p: *const u8, n: usize) -> __m512i {
    // SAFETY: only the n elements that the caller promises are read.
    unsafe {
        match S {
            F32 => _mm512_maskz_loadu_epi32(low_bits(n), p.cast()),
            F16 => _mm512_castps_si512(_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(low_bits(n), p.cast()))),
            BF16 => {
                let narrow = _mm256_maskz_loadu_epi16(low_bits(n), p.cast());
                _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow))
            }
            _ => {
                let mask = if n >= 64 { u64::MAX } else { (1u64 << n) - 1 };
                _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, p.cast()), _mm512_set1_epi32(flip(S)))
            }
        }
    }
}

/// Packs floats whose lanes are side by side: row by row over all panels, so that memory is read in long runs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512_side_by_side<const S: u8>(strip: &Strip, dst: *mut i32) {
    for p in 0..strip.k {
        for index in 0..strip.panels() {
            let lanes = (strip.lanes - index * strip.width).min(strip.width);
            for first in (0..strip.width).step_by(16) {
                let live = lanes.saturating_sub(first).min(16);
                // SAFETY: reads the lanes that exist, writes the lanes of the panel.
                unsafe {
                    let src =
                        strip.src.wrapping_add((p * strip.k_stride + index * strip.width + first) * size(S));
                    let values = load16::<S>(src, live);
                    let to = dst.add(index * strip.panel + p * strip.width + first);
                    _mm512_mask_storeu_epi32(to, low_bits((strip.width - first).min(16)), values);
                }
            }
        }
    }
}

/// Packs i8 whose lanes are side by side: four rows are interleaved byte by byte.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512_interleaved<const S: u8>(strip: &Strip, dst: *mut i32) {
    for p in (0..strip.k).step_by(4) {
        for index in 0..strip.panels() {
            let lanes = (strip.lanes - index * strip.width).min(strip.width);
            for first in (0..strip.width).step_by(16) {
                let mask = low_bits(lanes.saturating_sub(first).min(16));
                let mut rows = [_mm_setzero_si128(); 4];
                for (row, p) in rows.iter_mut().zip(p..strip.k) {
                    let src = strip.src.wrapping_add(p * strip.k_stride + index * strip.width + first);
                    // SAFETY: reads the lanes that exist.
                    *row = unsafe { _mm_maskz_loadu_epi8(mask, src.cast()) };
                }
                let pairs = [
                    _mm_unpacklo_epi8(rows[0], rows[1]),
                    _mm_unpackhi_epi8(rows[0], rows[1]),
                    _mm_unpacklo_epi8(rows[2], rows[3]),
                    _mm_unpackhi_epi8(rows[2], rows[3]),
                ];
                let mut fours = _mm512_castsi128_si512(_mm_unpacklo_epi16(pairs[0], pairs[2]));
                fours = _mm512_inserti32x4::<1>(fours, _mm_unpackhi_epi16(pairs[0], pairs[2]));
                fours = _mm512_inserti32x4::<2>(fours, _mm_unpacklo_epi16(pairs[1], pairs[3]));
                fours = _mm512_inserti32x4::<3>(fours, _mm_unpackhi_epi16(pairs[1], pairs[3]));
                fours = _mm512_xor_si512(fours, _mm512_set1_epi32(flip(S)));
                // SAFETY: writes the lanes of the panel.
                unsafe {
                    let to = dst.add(index * strip.panel + p / 4 * strip.width + first);
                    _mm512_mask_storeu_epi32(to, low_bits((strip.width - first).min(16)), fours);
                }
            }
        }
    }
}

/// Packs lanes whose products are side by side: 16 lanes by 16 steps at a time are transposed in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn avx512_transposed<const S: u8>(strip: &Strip, dst: *mut i32) {
    let steps = strip.k.div_ceil(group(S));
    for block in 0..strip.panels() * strip.width.div_ceil(16) {
        let (index, first) = (block / strip.width.div_ceil(16), block % strip.width.div_ceil(16) * 16);
        let lane0 = index * strip.width + first;
        let live = strip.lanes.saturating_sub(lane0).min(16);
        let mask = low_bits((strip.width - first).min(16).min(strip.width));
        for step in (0..steps).step_by(16) {
            let count = (strip.k - step * group(S)).min(16 * group(S));
            let mut rows = [_mm512_setzero_si512(); 16];
            for (lane, row) in rows.iter_mut().enumerate().take(live) {
                // SAFETY: the lane exists, and so do `count` products of it from this step on.
                unsafe {
                    let src = strip.src.add(((lane0 + lane) * strip.lane_stride + step * group(S)) * size(S));
                    *row = load16::<S>(src, count);
                }
            }
            for (q, column) in transpose16(rows).iter().enumerate().take(steps - step) {
                // SAFETY: writes the lanes of the panel.
                unsafe {
                    let to = dst.add(index * strip.panel + (step + q) * strip.width + first);
                    _mm512_mask_storeu_epi32(to, mask, *column);
                }
            }
        }
    }
}

/// The transpose of a 16 × 16 matrix of 32-bit elements.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose16(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut t = r;
    for i in (0..16).step_by(2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    // u[4q + c]: column 4·lane + c of rows 4q..4q+4, for each of the four 128-bit lanes.
    let mut u = t;
    for i in (0..16).step_by(4) {
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    let mut out = u;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0b01_00_01_00>(u[c], u[4 + c]);
        let high = _mm512_shuffle_i32x4::<0b11_10_11_10>(u[c], u[4 + c]);
        let low2 = _mm512_shuffle_i32x4::<0b01_00_01_00>(u[8 + c], u[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0b11_10_11_10>(u[8 + c], u[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low, low2);
        out[4 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low, low2);
        out[8 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high, high2);
        out[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high, high2);
    }
    out
}

/// Packs floats as f32.
///
/// # Safety
/// As `pack::floats`, on a processor with AVX2 and F16C.
pub(super) unsafe fn avx2_floats<const S: u8>(strip: &Strip, dst: *mut u8) {
    // SAFETY: passed on.
    unsafe {
        match (strip.lane_stride, strip.k_stride) {
            (1, _) => avx2_side_by_side::<S>(strip, dst.cast()),
            (_, 1) => avx2_transposed::<S>(strip, dst.cast()),
            _ => portable::<S>(strip, dst),
        }
    }
}

/// Packs i8 as pairs of i16.
///
/// # Safety
/// As `pack::i8_pairs`, on a processor with AVX2.
pub(super) unsafe fn avx2_i8(strip: &Strip, dst: *mut u8) {
    // SAFETY: passed on.
    unsafe {
        match strip.k_stride {
            1 => avx2_transposed::<I8_B>(strip, dst.cast()),
            _ => pack::i8_pairs(strip, dst),
        }
    }
}

/// Eight packed elements at `p`: 8 floats as f32, or 16 i8 as 8 pairs of i16.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load8<const S: u8>(p: *const u8) -> __m256 {
    // SAFETY: the caller promises that they exist.
    unsafe {
        match S {
            F32 => _mm256_loadu_ps(p.cast()),
            F16 => _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            BF16 => {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
            }
            _ => _mm256_castsi256_ps(_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast()))),
        }
    }
}

/// The first `n` packed elements' worth of products at `p`, zeros behind.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn load8_part<const S: u8>(p: *const u8, bytes: usize) -> __m256 {
    let mut copy = [0u8; 32];
    // SAFETY: the caller promises `bytes ≤ 32` bytes at p.
    unsafe {
        std::ptr::copy_nonoverlapping(p, copy.as_mut_ptr(), bytes);
        load8::<S>(copy.as_ptr())
    }
}

/// As `avx512_side_by_side`.
#[target_feature(enable = "avx2,f16c")]
unsafe fn avx2_side_by_side<const S: u8>(strip: &Strip, dst: *mut f32) {
    for p in 0..strip.k {
        for index in 0..strip.panels() {
            let lanes = (strip.lanes - index * strip.width).min(strip.width);
            for first in (0..strip.width).step_by(8) {
                let live = lanes.saturating_sub(first).min(8);
                let src =
                    strip.src.wrapping_add((p * strip.k_stride + index * strip.width + first) * size(S));
                // SAFETY: reads the lanes that exist, writes the lanes of the panel.
                unsafe {
                    let values =
                        if live == 8 { load8::<S>(src) } else { load8_part::<S>(src, live * size(S)) };
                    let to = dst.add(index * strip.panel + p * strip.width + first);
                    store_part(to, values, (strip.width - first).min(8));
                }
            }
        }
    }
}

/// As `avx512_transposed`, 8 lanes by 8 steps.
#[target_feature(enable = "avx2,f16c")]
unsafe fn avx2_transposed<const S: u8>(strip: &Strip, dst: *mut f32) {
    let group = if S == I8_B { 2 } else { 1 };
    let steps = strip.k.div_ceil(group);
    for block in 0..strip.panels() * strip.width.div_ceil(8) {
        let (index, first) = (block / strip.width.div_ceil(8), block % strip.width.div_ceil(8) * 8);
        let lane0 = index * strip.width + first;
        let live = strip.lanes.saturating_sub(lane0).min(8);
        for step in (0..steps).step_by(8) {
            let count = (strip.k - step * group).min(8 * group);
            let mut rows = [_mm256_setzero_ps(); 8];
            for (lane, row) in rows.iter_mut().enumerate().take(live) {
                // SAFETY: the lane exists, and so do `count` products of it from this step on.
                unsafe {
                    let src = strip.src.add(((lane0 + lane) * strip.lane_stride + step * group) * size(S));
                    let full = count == 8 * group;
                    *row = if full { load8::<S>(src) } else { load8_part::<S>(src, count * size(S)) };
                }
            }
            for (q, column) in transpose8(rows).iter().enumerate().take(steps - step) {
                // SAFETY: writes the lanes of the panel.
                unsafe {
                    let to = dst.add(index * strip.panel + (step + q) * strip.width + first);
                    store_part(to, *column, (strip.width - first).min(8));
                }
            }
        }
    }
}

/// Stores the first `n ≤ 8` elements.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_part(p: *mut f32, values: __m256, n: usize) {
    const MASKS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: n elements are written, as the caller promises; the mask is read from within the table.
    unsafe {
        if n == 8 {
            _mm256_storeu_ps(p, values);
        } else {
            _mm256_maskstore_ps(p, _mm256_loadu_si256(MASKS.as_ptr().add(8 - n).cast()), values);
        }
    }
}

/// The transpose of an 8 × 8 matrix.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    let mut u = r;
    for i in (0..8).step_by(4) {
        let (t0, t1) = (_mm256_unpacklo_ps(r[i], r[i + 1]), _mm256_unpackhi_ps(r[i], r[i + 1]));
        let (t2, t3) = (_mm256_unpacklo_ps(r[i + 2], r[i + 3]), _mm256_unpackhi_ps(r[i + 2], r[i + 3]));
        u[i] = _mm256_shuffle_ps::<0b01_00_01_00>(t0, t2);
        u[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(t0, t2);
        u[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(t1, t3);
        u[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(t1, t3);
    }
    let mut out = u;
    for c in 0..4 {
        out[c] = _mm256_permute2f128_ps::<0x20>(u[c], u[4 + c]);
        out[4 + c] = _mm256_permute2f128_ps::<0x31>(u[c], u[4 + c]);
    }
    out
}
