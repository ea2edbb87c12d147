//! The f32 product with AVX-512 and AVX2: the dequantized panel, and tiles of fused multiply-adds.
//!
//! The scalar twins are in `float.rs`.

use super::float::FloatTile;
use super::int8::{EIGHT, FIVE, FOUR, SIX, StripRef};
use super::strip::{BLOCK, Family, ROWS, StripLayout};
use super::{int8_avx2, int8_avx512};
use portolan_ops::Offset;
use std::arch::x86_64::*;

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
        match layout.family {
            Family::Four => panel_512::<FOUR>(layout, strip, first, count, dst),
            Family::Five => panel_512::<FIVE>(layout, strip, first, count, dst),
            Family::Six => panel_512::<SIX>(layout, strip, first, count, dst),
            Family::Eight => panel_512::<EIGHT>(layout, strip, first, count, dst),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn panel_512<const FAMILY: u8>(
    layout: &StripLayout,
    strip: &StripRef,
    first: usize,
    count: usize,
    dst: *mut f32,
) {
    let parts = layout.parts_of_block();
    let bias = _mm512_set1_epi32(layout.bias);
    let byte = _mm512_set1_epi32(255);
    for b in first..first + count {
        for pair in 0..4 {
            // SAFETY: blocks, parts and columns are within what the pointers cover.
            unsafe {
                let (low, high) = int8_avx512::codes::<FAMILY>(strip.codes.add(b * strip.stride), pair);
                for (quad, codes) in [low, high].into_iter().enumerate() {
                    for i in 0..4 {
                        let c = pair * 8 + quad * 4 + i;
                        let at = (b * parts + c * parts / BLOCK) * ROWS;
                        let shifted = _mm512_srlv_epi32(codes, _mm512_set1_epi32(8 * i as i32));
                        let code = _mm512_sub_epi32(_mm512_and_si512(shifted, byte), bias);
                        let code = _mm512_cvtepi32_ps(code);
                        let scale = _mm512_loadu_ps(strip.scales.add(at));
                        // Each operation is rounded on its own: the contract's rule, so no fused multiply-add.
                        let value = match layout.scheme.offset {
                            Offset::None => _mm512_mul_ps(code, scale),
                            Offset::Min => _mm512_add_ps(
                                _mm512_mul_ps(code, scale),
                                _mm512_loadu_ps(strip.offsets.add(at)),
                            ),
                            Offset::ZeroPoint => _mm512_mul_ps(
                                _mm512_sub_ps(code, _mm512_loadu_ps(strip.offsets.add(at))),
                                scale,
                            ),
                        };
                        _mm512_storeu_ps(dst.add(((b - first) * BLOCK + c) * ROWS), value);
                    }
                }
            }
        }
    }
}

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
        match layout.family {
            Family::Four => panel_256::<FOUR>(layout, strip, first, count, dst),
            Family::Five => panel_256::<FIVE>(layout, strip, first, count, dst),
            Family::Six => panel_256::<SIX>(layout, strip, first, count, dst),
            Family::Eight => panel_256::<EIGHT>(layout, strip, first, count, dst),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn panel_256<const FAMILY: u8>(
    layout: &StripLayout,
    strip: &StripRef,
    first: usize,
    count: usize,
    dst: *mut f32,
) {
    let parts = layout.parts_of_block();
    let bias = _mm256_set1_epi32(layout.bias);
    let byte = _mm256_set1_epi32(255);
    for b in first..first + count {
        for (half, pair) in (0..8).map(|i| (i % 2, i / 2)) {
            // SAFETY: blocks, parts and columns are within what the pointers cover.
            unsafe {
                let block = strip.codes.add(b * strip.stride);
                let (low, high) = int8_avx2::codes::<FAMILY>(block, half, pair);
                for (quad, codes) in [low, high].into_iter().enumerate() {
                    for i in 0..4 {
                        let c = pair * 8 + quad * 4 + i;
                        let at = (b * parts + c * parts / BLOCK) * ROWS + half * 8;
                        let shifted = _mm256_srlv_epi32(codes, _mm256_set1_epi32(8 * i as i32));
                        let code = _mm256_sub_epi32(_mm256_and_si256(shifted, byte), bias);
                        let code = _mm256_cvtepi32_ps(code);
                        let scale = _mm256_loadu_ps(strip.scales.add(at));
                        // Each operation is rounded on its own: the contract's rule, so no fused multiply-add.
                        let value = match layout.scheme.offset {
                            Offset::None => _mm256_mul_ps(code, scale),
                            Offset::Min => _mm256_add_ps(
                                _mm256_mul_ps(code, scale),
                                _mm256_loadu_ps(strip.offsets.add(at)),
                            ),
                            Offset::ZeroPoint => _mm256_mul_ps(
                                _mm256_sub_ps(code, _mm256_loadu_ps(strip.offsets.add(at))),
                                scale,
                            ),
                        };
                        _mm256_storeu_ps(dst.add(((b - first) * BLOCK + c) * ROWS + half * 8), value);
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn tile_avx512(height: usize, strips: usize, tile: &FloatTile) {
    // SAFETY: passed on.
    unsafe {
        match tile.part {
            0 => tiles_512::<false>(height, strips, tile),
            _ => tiles_512::<true>(height, strips, tile),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tiles_512<const APART: bool>(height: usize, strips: usize, tile: &FloatTile) {
    // SAFETY: passed on.
    unsafe {
        match (height, strips) {
            (12, _) => tile_512::<12, 1, APART>(tile),
            (4, _) => tile_512::<4, 1, APART>(tile),
            (_, 4) => tile_512::<1, 4, APART>(tile),
            (_, 3) => tile_512::<1, 3, APART>(tile),
            (_, 2) => tile_512::<1, 2, APART>(tile),
            _ => tile_512::<1, 1, APART>(tile),
        }
    }
}

/// `APART`: columns are summed part by part, and the sums scaled.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile_512<const HEIGHT: usize, const STRIPS: usize, const APART: bool>(tile: &FloatTile) {
    // SAFETY: within the tile's extents.
    unsafe {
        let acc = |s: usize, m: usize| tile.acc.add(s * tile.acc_stride + m * ROWS);
        let mut totals = [[_mm512_setzero_ps(); HEIGHT]; STRIPS];
        for (s, totals) in totals.iter_mut().enumerate() {
            for (m, total) in totals.iter_mut().enumerate() {
                *total = _mm512_loadu_ps(acc(s, m));
            }
        }
        let part = if APART { tile.part } else { tile.columns.max(1) };
        for (p, first) in (0..tile.columns).step_by(part).enumerate() {
            let mut sums = if APART { [[_mm512_setzero_ps(); HEIGHT]; STRIPS] } else { totals };
            for c in first..first + part {
                let x = tile.x.add(c * HEIGHT);
                for (s, sums) in sums.iter_mut().enumerate() {
                    let weights = _mm512_loadu_ps(tile.panel.add(s * tile.panel_stride + c * ROWS));
                    for (m, sum) in sums.iter_mut().enumerate() {
                        *sum = _mm512_fmadd_ps(weights, _mm512_set1_ps(*x.add(m)), *sum);
                    }
                }
            }
            if !APART {
                totals = sums;
                continue;
            }
            for (s, totals) in totals.iter_mut().enumerate() {
                let scale = _mm512_loadu_ps(tile.scales.add(s * tile.scales_stride + p * ROWS));
                for (m, total) in totals.iter_mut().enumerate() {
                    *total = _mm512_fmadd_ps(sums[s][m], scale, *total);
                }
            }
        }
        for (s, totals) in totals.into_iter().enumerate() {
            for (m, total) in totals.into_iter().enumerate() {
                _mm512_storeu_ps(acc(s, m), total);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn tile_avx2(height: usize, strips: usize, tile: &FloatTile) {
    // SAFETY: passed on; 6 and 4 rows by two vectors fit the 16 registers.
    unsafe {
        match height {
            12 => (0..2).for_each(|i| tile_256::<6, 12>(tile, 0, i * 6)),
            4 => tile_256::<4, 4>(tile, 0, 0),
            _ => (0..strips).for_each(|s| tile_256::<1, 1>(tile, s, 0)),
        }
    }
}

/// Rows `from .. from + COUNT` of strip `s` of a tile of `HEIGHT` rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_256<const COUNT: usize, const HEIGHT: usize>(tile: &FloatTile, s: usize, from: usize) {
    // SAFETY: within the tile's extents.
    unsafe {
        let acc = |m: usize, half: usize| tile.acc.add(s * tile.acc_stride + (from + m) * ROWS + half * 8);
        let mut sums = [[_mm256_setzero_ps(); 2]; COUNT];
        for (m, sums) in sums.iter_mut().enumerate() {
            *sums = [_mm256_loadu_ps(acc(m, 0)), _mm256_loadu_ps(acc(m, 1))];
        }
        for c in 0..tile.columns {
            let weights = tile.panel.add(s * tile.panel_stride + c * ROWS);
            let (left, right) = (_mm256_loadu_ps(weights), _mm256_loadu_ps(weights.add(8)));
            for (m, sums) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*tile.x.add(c * HEIGHT + from + m));
                sums[0] = _mm256_fmadd_ps(left, x, sums[0]);
                sums[1] = _mm256_fmadd_ps(right, x, sums[1]);
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            _mm256_storeu_ps(acc(m, 0), sums[0]);
            _mm256_storeu_ps(acc(m, 1), sums[1]);
        }
    }
}
