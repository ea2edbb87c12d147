//! Tiles of the int8 product with AVX-512 VNNI: one `vpdpbusd` is 16 rows by 4 columns.
//!
//! Weights come from memory once a tile and are unpacked in registers; activations are broadcast from memory by
//! the product itself. The scalar twin is in `int8.rs`.

use super::int8::{
    EIGHT, FIVE, FOUR, MINIMUM, SIX, StripRef, Tile, TileRef, ZERO, ask_ahead, block_bytes, joined_bytes,
    parts, select_joined_tile, select_tiles,
};
use super::strip::{BLOCK, Family, ROWS};
use std::arch::x86_64::*;

/// Blocks with their scales between what is read and what is asked for.
const AHEAD: usize = 4;

pub(crate) fn select(family: Family, mode: u8) -> [Tile; 3] {
    select_tiles!(tile; family, mode)
}

pub(crate) fn select_joined(family: Family, mode: u8) -> Option<Tile> {
    select_joined_tile!(joined; family, mode)
}

/// Codes of columns `8·pair .. 8·pair + 8` of a block, without sign: first four, last four.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn codes<const FAMILY: u8>(block: *const u8, pair: usize) -> (__m512i, __m512i) {
    // SAFETY: the block has `block_bytes(FAMILY)` bytes.
    unsafe {
        let load = |at: usize| _mm512_loadu_si512(block.add(at).cast());
        if FAMILY == EIGHT {
            return (load(pair * 128), load(pair * 128 + 64));
        }
        let nibble = _mm512_set1_epi8(15);
        let both = load(pair * 64);
        let low = _mm512_and_si512(both, nibble);
        let high = _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble);
        // Upper bits are shifted to bit 4 of their byte; what crosses into a neighbour is masked away.
        let with = |code: __m512i, upper: __m512i, from: usize, mask: i8| {
            let left = _mm512_set1_epi16(4usize.saturating_sub(from) as i16);
            let right = _mm512_set1_epi16(from.saturating_sub(4) as i16);
            let moved = _mm512_srlv_epi16(_mm512_sllv_epi16(upper, left), right);
            // (moved & mask) | code
            _mm512_ternarylogic_epi32::<0xEA>(moved, _mm512_set1_epi8(mask), code)
        };
        match FAMILY {
            FIVE => {
                let upper = load(256);
                (with(low, upper, 2 * pair, 0x10), with(high, upper, 2 * pair + 1, 0x10))
            }
            SIX => {
                let upper = load(256 + pair / 2 * 64);
                let from = pair % 2 * 4;
                (with(low, upper, from, 0x30), with(high, upper, from + 2, 0x30))
            }
            _ => (low, high),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<const HEIGHT: usize, const FAMILY: u8, const MODE: u8>(
    strip: &StripRef,
    tile: &TileRef,
    blocks: usize,
    out: *mut f32,
    stride: usize,
) {
    const { assert!(FAMILY == FOUR || FAMILY == FIVE || FAMILY == SIX || FAMILY == EIGHT) };
    let parts = parts(MODE);
    let pairs = BLOCK / 8 / parts;
    // SAFETY: pointers advance block by block through arrays that cover `blocks` of them.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); HEIGHT];
        for b in 0..blocks {
            let weights = strip.codes.add(b * strip.stride);
            if HEIGHT == 1 {
                strip.ask(b);
            }
            let x = tile.codes.add(b * HEIGHT * BLOCK);
            for part in 0..parts {
                let panel = (b * parts + part) * ROWS;
                let init = tile.init.add((b * parts + part) * HEIGHT);
                let mut dots = [_mm512_setzero_si512(); HEIGHT];
                for (m, dot) in dots.iter_mut().enumerate() {
                    *dot = _mm512_set1_epi32(*init.add(m));
                }
                if MODE == ZERO {
                    let zero = _mm512_cvtps_epi32(_mm512_loadu_ps(strip.offsets.add(panel)));
                    for (m, dot) in dots.iter_mut().enumerate() {
                        let sum = _mm512_set1_epi32(*tile.side.add(b * HEIGHT + m));
                        *dot = _mm512_sub_epi32(*dot, _mm512_mullo_epi32(zero, sum));
                    }
                }
                for i in 0..pairs {
                    let pair = part * pairs + i;
                    let (first, last) = codes::<FAMILY>(weights, pair);
                    for (m, dot) in dots.iter_mut().enumerate() {
                        let x = x.add(m * BLOCK + pair * 8).cast::<i32>();
                        *dot = _mm512_dpbusd_epi32(*dot, first, _mm512_set1_epi32(x.read_unaligned()));
                        *dot = _mm512_dpbusd_epi32(*dot, last, _mm512_set1_epi32(x.add(1).read_unaligned()));
                    }
                }
                let scales = _mm512_loadu_ps(strip.scales.add(panel));
                for (m, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(*tile.scale.add(b * HEIGHT + m)));
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, *sum);
                }
                if MODE == MINIMUM {
                    let minima = _mm512_loadu_ps(strip.offsets.add(panel));
                    for (m, sum) in sums.iter_mut().enumerate() {
                        let side = f32::from_bits(*tile.side.add(b * HEIGHT + m) as u32);
                        *sum = _mm512_fmadd_ps(minima, _mm512_set1_ps(side), *sum);
                    }
                }
            }
        }
        for (m, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(out.add(m * stride), sum);
        }
    }
}

/// One row by one strip or two, whose blocks carry their scales.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn joined<const FAMILY: u8, const MODE: u8>(
    strip: &StripRef,
    tile: &TileRef,
    blocks: usize,
    out: *mut f32,
    _: usize,
) {
    // SAFETY: passed on.
    unsafe {
        match strip.second.is_null() {
            true => side_by_side::<FAMILY, MODE, 1>([strip.codes], tile, blocks, out),
            false => side_by_side::<FAMILY, MODE, 2>([strip.codes, strip.second], tile, blocks, out),
        }
    }
}

/// One row by strips that follow each other: memory gives two runs at once faster than one after the other. A strip's
/// operations are those of [`tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn side_by_side<const FAMILY: u8, const MODE: u8, const STRIPS: usize>(
    strips: [*const u8; STRIPS],
    tile: &TileRef,
    blocks: usize,
    out: *mut f32,
) {
    let bytes = const { joined_bytes(FAMILY, MODE) };
    // SAFETY: pointers advance block by block through arrays that cover `blocks` of them.
    unsafe {
        let others = strips[STRIPS - 1].offset_from(strips[0]) as usize;
        let mut sums = [_mm512_setzero_ps(); STRIPS];
        for b in 0..blocks {
            // Behind the end of a strip the other one has been read; what comes next lies behind both.
            let ahead = bytes * AHEAD + if b + AHEAD < blocks { 0 } else { others };
            let x = tile.codes.add(b * BLOCK).cast::<i32>();
            for (sum, &strip) in sums.iter_mut().zip(&strips) {
                let weights = strip.add(b * bytes);
                ask_ahead(weights, bytes, ahead);
                let mut dot = _mm512_set1_epi32(*tile.init.add(b));
                for pair in 0..BLOCK / 8 {
                    let (first, last) = codes::<FAMILY>(weights, pair);
                    let x = x.add(2 * pair);
                    dot = _mm512_dpbusd_epi32(dot, first, _mm512_set1_epi32(x.read_unaligned()));
                    dot = _mm512_dpbusd_epi32(dot, last, _mm512_set1_epi32(x.add(1).read_unaligned()));
                }
                let halves = weights.add(block_bytes(FAMILY)).cast::<__m256i>();
                let scales = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
                let scales = _mm512_mul_ps(scales, _mm512_set1_ps(*tile.scale.add(b)));
                *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scales, *sum);
                if MODE == MINIMUM {
                    let minima = _mm512_cvtph_ps(_mm256_loadu_si256(halves.add(1)));
                    let side = f32::from_bits(*tile.side.add(b) as u32);
                    *sum = _mm512_fmadd_ps(minima, _mm512_set1_ps(side), *sum);
                }
            }
        }
        for (s, sum) in sums.into_iter().enumerate() {
            _mm512_storeu_ps(out.add(s * ROWS), sum);
        }
    }
}
