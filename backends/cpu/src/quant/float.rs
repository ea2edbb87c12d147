//! Tiles of the f32 product: codes of a strip become a panel of f32 by the exact rule, then tiles multiply it.
//!
//! Sums follow k in order, one fused multiply-add a step, whatever the height of the tile. `float_x86.rs` has the
//! vector forms; here are the scalar twins and the choice.

use super::int8::StripRef;
use super::strip::{BLOCK, ROWS, StripLayout, load_code};
use crate::Isa;

/// Columns of a panel: 256 · 16 · 4 bytes are a third of a 48 KiB first-level cache, and so are 12 rows of activations.
pub(crate) const PANEL_COLUMNS: usize = 256;
/// Strips that a single row is multiplied with at once, so that four chains of sums hide each other's latency.
pub(crate) const SINGLE_STRIPS: usize = 4;

/// Whether sums of a part of a block are scaled, and not its weights one by one: panels then hold numbers without
/// their scale. It is as exact, and a multiplication a weight less where a single row is bound by instructions.
pub(crate) fn scales_apart(isa: Isa, layout: &StripLayout) -> bool {
    isa == Isa::Avx512 && layout.scheme.is_float()
}

/// Dequantizes columns of blocks `first .. first + count` of a strip into `dst[column][16]`, up to scales that are
/// [`scales_apart`].
///
/// # Safety
/// The blocks are within the strip, `dst` holds `count · 32 · 16` f32, `isa` is available.
pub(crate) unsafe fn panel(
    isa: Isa,
    layout: &StripLayout,
    strip: &StripRef,
    first: usize,
    count: usize,
    dst: *mut f32,
) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if layout.scheme.is_float() => {
                super::small_float_x86::panel_avx512(layout, strip, first, count, dst)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if layout.scheme.is_float() => {
                super::small_float_x86::panel_avx2(layout, strip, first, count, dst)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::float_x86::panel_avx512(layout, strip, first, count, dst),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::float_x86::panel_avx2(layout, strip, first, count, dst),
            _ => panel_portable(layout, strip, first, count, dst),
        }
    }
}

unsafe fn panel_portable(layout: &StripLayout, strip: &StripRef, first: usize, count: usize, dst: *mut f32) {
    let (bytes, parts) = (layout.family.block_bytes(), layout.parts_of_block());
    let with_offset = layout.scheme.offset_dtype().is_some();
    for b in 0..count {
        // SAFETY: the block is within the strip.
        let packed =
            unsafe { core::slice::from_raw_parts(strip.codes.add((first + b) * strip.stride), bytes) };
        for c in 0..BLOCK {
            let at = ((first + b) * parts + c * parts / BLOCK) * ROWS;
            for r in 0..ROWS {
                let code = layout.number(load_code(layout.family, packed, r, c));
                // SAFETY: panels of scales and offsets cover every part of every block, `dst` every column.
                unsafe {
                    let offset = if with_offset { *strip.offsets.add(at + r) } else { 0.0 };
                    let value = layout.scheme.value(code, *strip.scales.add(at + r), offset);
                    *dst.add((b * BLOCK + c) * ROWS + r) = value;
                }
            }
        }
    }
}

/// Whether there is a [`single_row`] for such a weight.
pub(crate) fn has_single_row(isa: Isa, layout: &StripLayout) -> bool {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => layout.scheme.is_float() && super::small_float_row::fits(layout),
        _ => false,
    }
}

/// Multiplies a single row with whole packed strips, dequantized in registers: `acc[strip][16] += Σ_k w[strip][k][16] ·
/// x[k]` by the operations, and with the bits, of [`panel`] and [`tile`].
///
/// # Safety
/// `x` holds whole blocks, `acc` 16 f32 for each strip; [`has_single_row`] said so; `isa` is available.
pub(crate) unsafe fn single_row(
    isa: Isa,
    layout: &StripLayout,
    strips: &[*const u8],
    x: *const f32,
    acc: *mut f32,
) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: passed on.
        Isa::Avx512 => unsafe { super::small_float_row::row(layout, strips, x, acc) },
        _ => {}
    }
}

/// A tile of f32: `acc[strip][row][16] += Σ_c panel[strip][c][16] · x[c][row]`, or, with scales, the sum over the parts
/// of `scales[strip][part][16] · Σ_c panel[strip][c][16] · x[c][row]`.
///
/// Consecutive strips lie `panel_stride`, `scales_stride` and `acc_stride` f32 apart.
pub(crate) struct FloatTile {
    pub(crate) panel: *const f32,
    pub(crate) panel_stride: usize,
    /// Scales of the panel's parts, where they are apart, and columns of a part; 0 where they are not.
    pub(crate) scales: *const f32,
    pub(crate) scales_stride: usize,
    pub(crate) part: usize,
    pub(crate) x: *const f32,
    pub(crate) columns: usize,
    pub(crate) acc: *mut f32,
    pub(crate) acc_stride: usize,
}

/// Runs a tile of `height` rows (12, 4 or 1) by `strips` strips; more than one only for a single row.
///
/// # Safety
/// The tile's pointers cover its extents; `isa` is available.
pub(crate) unsafe fn tile(isa: Isa, height: usize, strips: usize, tile: &FloatTile) {
    // SAFETY: passed on.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::float_x86::tile_avx512(height, strips, tile),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::float_x86::tile_avx2(height, strips, tile),
            _ => tile_portable(height, strips, tile),
        }
    }
}

unsafe fn tile_portable(height: usize, strips: usize, tile: &FloatTile) {
    for s in 0..strips {
        for m in 0..height {
            // SAFETY: within the tile's extents.
            unsafe {
                let acc = tile.acc.add(s * tile.acc_stride + m * ROWS).cast::<[f32; ROWS]>();
                let mut sums = acc.read_unaligned();
                for c in 0..tile.columns {
                    let x = *tile.x.add(c * height + m);
                    let weights = tile.panel.add(s * tile.panel_stride + c * ROWS).cast::<[f32; ROWS]>();
                    for (sum, w) in sums.iter_mut().zip(weights.read_unaligned()) {
                        *sum += w * x;
                    }
                }
                acc.write_unaligned(sums);
            }
        }
    }
}
