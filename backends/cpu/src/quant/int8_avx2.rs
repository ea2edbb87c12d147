//! Tiles of the int8 product with AVX2: `vpmaddubsw` and `vpmaddwd`, 8 rows by 4 columns at a time.
//!
//! `vpmaddubsw` saturates at 2^15: codes of up to 6 bits stay below it even in pairs (2·63·127·2 < 32768), and
//! bytes are multiplied as |w| · sign(w)·x with w = byte − 128 (128·127·2 < 32768). The scalar twin is in `int8.rs`.

use super::int8::{
    EIGHT, FIVE, MINIMUM, SIX, StripRef, Tile, TileRef, ZERO, ask_ahead, block_bytes, joined_bytes, parts,
    select_joined_tile, select_tiles,
};
use super::strip::{BLOCK, Family, ROWS};
use std::arch::x86_64::*;

pub(crate) fn select(family: Family, mode: u8) -> [Tile; 3] {
    select_tiles!(tile; family, mode)
}

pub(crate) fn select_joined(family: Family, mode: u8) -> Option<Tile> {
    select_joined_tile!(joined; family, mode)
}

/// Codes of 8 rows, columns `8·pair .. 8·pair + 8` of a block, without sign: first four, last four.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn codes<const FAMILY: u8>(
    block: *const u8,
    half: usize,
    pair: usize,
) -> (__m256i, __m256i) {
    // SAFETY: the block has `block_bytes(FAMILY)` bytes.
    unsafe {
        let load = |at: usize| _mm256_loadu_si256(block.add(at + half * 32).cast());
        if FAMILY == EIGHT {
            return (load(pair * 128), load(pair * 128 + 64));
        }
        let nibble = _mm256_set1_epi8(15);
        let both = load(pair * 64);
        let low = _mm256_and_si256(both, nibble);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
        // Upper bits are shifted to bit 4 of their byte; what crosses into a neighbour is masked away.
        let with = |code: __m256i, upper: __m256i, from: usize, mask: i8| {
            let left = _mm_cvtsi32_si128(4usize.saturating_sub(from) as i32);
            let right = _mm_cvtsi32_si128(from.saturating_sub(4) as i32);
            let moved = _mm256_srl_epi16(_mm256_sll_epi16(upper, left), right);
            _mm256_or_si256(_mm256_and_si256(moved, _mm256_set1_epi8(mask)), code)
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

/// Two sets of 4 columns of codes times two of activations, as i32 sums of 8 rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn products<const FAMILY: u8>(first: __m256i, last: __m256i, x: __m256i, y: __m256i) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    if FAMILY == EIGHT {
        let product = |w: __m256i, x: __m256i| {
            let w = _mm256_xor_si256(w, _mm256_set1_epi8(i8::MIN));
            _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), ones)
        };
        _mm256_add_epi32(product(first, x), product(last, y))
    } else {
        let sums = _mm256_add_epi16(_mm256_maddubs_epi16(first, x), _mm256_maddubs_epi16(last, y));
        _mm256_madd_epi16(sums, ones)
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const HEIGHT: usize, const FAMILY: u8, const MODE: u8>(
    strip: &StripRef,
    tile: &TileRef,
    blocks: usize,
    out: *mut f32,
    stride: usize,
) {
    // 4 rows at a time keep 4 i32 and 4 f32 sums in the 16 registers; both halves of the strip in turn.
    let step = if HEIGHT < 4 { 1 } else { 4 };
    for half in 0..2 {
        for first in (0..HEIGHT).step_by(step) {
            // SAFETY: passed on; `first + step` is at most `HEIGHT`.
            unsafe {
                if HEIGHT < 4 {
                    rows::<1, HEIGHT, FAMILY, MODE, false>(strip, tile, blocks, half, first, out, stride);
                } else {
                    rows::<4, HEIGHT, FAMILY, MODE, false>(strip, tile, blocks, half, first, out, stride);
                }
            }
        }
    }
}

/// One row by one strip or two, whose blocks carry their scales.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn joined<const FAMILY: u8, const MODE: u8>(
    strip: &StripRef,
    tile: &TileRef,
    blocks: usize,
    out: *mut f32,
    stride: usize,
) {
    let second = StripRef { codes: strip.second, ..*strip };
    for (i, strip) in [strip, &second].into_iter().filter(|strip| !strip.codes.is_null()).enumerate() {
        for half in 0..2 {
            // SAFETY: passed on.
            unsafe {
                rows::<1, 1, FAMILY, MODE, true>(strip, tile, blocks, half, 0, out.add(i * ROWS), stride);
            }
        }
    }
}

/// Rows `from .. from + COUNT` of a tile by one half of a strip.
#[target_feature(enable = "avx2,fma,f16c")]
#[allow(clippy::too_many_arguments, reason = "one inner function of `tile`")]
unsafe fn rows<
    const COUNT: usize,
    const HEIGHT: usize,
    const FAMILY: u8,
    const MODE: u8,
    const JOINED: bool,
>(
    strip: &StripRef,
    tile: &TileRef,
    blocks: usize,
    half: usize,
    from: usize,
    out: *mut f32,
    stride: usize,
) {
    let parts = parts(MODE);
    let pairs = BLOCK / 8 / parts;
    // SAFETY: pointers advance block by block through arrays that cover `blocks` of them.
    unsafe {
        let mut sums = [_mm256_setzero_ps(); COUNT];
        for b in 0..blocks {
            let weights =
                strip.codes.add(b * if JOINED { const { joined_bytes(FAMILY, MODE) } } else { strip.stride });
            if half == 0 {
                if JOINED {
                    ask_ahead(
                        weights,
                        const { joined_bytes(FAMILY, MODE) },
                        const { 2 * joined_bytes(FAMILY, MODE) },
                    );
                } else if HEIGHT == 1 {
                    strip.ask(b);
                }
            }
            let at = b * HEIGHT + from;
            let x = tile.codes.add(at * BLOCK);
            for part in 0..parts {
                let panel = (b * parts + part) * ROWS + half * 8;
                let init = tile.init.add((b * parts + part) * HEIGHT + from);
                let mut dots = [_mm256_setzero_si256(); COUNT];
                for (m, dot) in dots.iter_mut().enumerate() {
                    *dot = _mm256_set1_epi32(*init.add(m));
                }
                if MODE == ZERO {
                    let zero = _mm256_cvtps_epi32(_mm256_loadu_ps(strip.offsets.add(panel)));
                    for (m, dot) in dots.iter_mut().enumerate() {
                        let sum = _mm256_set1_epi32(*tile.side.add(at + m));
                        *dot = _mm256_sub_epi32(*dot, _mm256_mullo_epi32(zero, sum));
                    }
                }
                for i in 0..pairs {
                    let pair = part * pairs + i;
                    let (first, last) = codes::<FAMILY>(weights, half, pair);
                    for (m, dot) in dots.iter_mut().enumerate() {
                        let x = x.add(m * BLOCK + pair * 8).cast::<i32>();
                        let (x, y) = (x.read_unaligned(), x.add(1).read_unaligned());
                        let sum = products::<FAMILY>(first, last, _mm256_set1_epi32(x), _mm256_set1_epi32(y));
                        *dot = _mm256_add_epi32(*dot, sum);
                    }
                }
                let halves = |i: usize| {
                    let at = block_bytes(FAMILY) + (i * ROWS + half * 8) * 2;
                    _mm256_cvtph_ps(_mm_loadu_si128(weights.add(at).cast()))
                };
                let scales = if JOINED { halves(0) } else { _mm256_loadu_ps(strip.scales.add(panel)) };
                for (m, (sum, dot)) in sums.iter_mut().zip(dots).enumerate() {
                    let scale = _mm256_mul_ps(scales, _mm256_set1_ps(*tile.scale.add(at + m)));
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, *sum);
                }
                if MODE == MINIMUM {
                    let minima = if JOINED { halves(1) } else { _mm256_loadu_ps(strip.offsets.add(panel)) };
                    for (m, sum) in sums.iter_mut().enumerate() {
                        let side = f32::from_bits(*tile.side.add(at + m) as u32);
                        *sum = _mm256_fmadd_ps(minima, _mm256_set1_ps(side), *sum);
                    }
                }
            }
        }
        for (m, sum) in sums.into_iter().enumerate() {
            _mm256_storeu_ps(out.add((from + m) * stride + half * 8), sum);
        }
    }
}
