//! Tiles of the int8 product: up to 12 rows of activations by the 16 rows of a strip, over all of k.
//!
//! Inside a group sums are i32 and exact; groups are then added in f32 in the order of k, by the same operations
//! for every height of a tile, so that a row's bits depend neither on the batch nor on threads.

use super::activation::Int8Rows;
use super::strip::{BLOCK, Family, ROWS, StripLayout, load_code};
use crate::Isa;
use portolan_ops::{DType, Offset};

/// A strip as tiles read it.
#[derive(Clone, Copy)]
pub(crate) struct StripRef {
    /// Packed codes, and bytes from a block to the next.
    pub(crate) codes: *const u8,
    pub(crate) stride: usize,
    /// Scales, 16 for each part of a block.
    pub(crate) scales: *const f32,
    /// Minima or zero points, likewise; not read where there are none.
    pub(crate) offsets: *const f32,
    /// What to ask memory for meanwhile, and how many bytes of it with each block: the strip that comes next.
    pub(crate) next: *const u8,
    pub(crate) next_bytes: usize,
    /// For kernels of blocks with their scales: one more strip, whose results lie behind those of this one; or null.
    pub(crate) second: *const u8,
}

impl StripRef {
    /// Asks for the part of the next strip that goes with `block`: a single row leaves so little to compute that
    /// the latency of memory shows wherever a strip or one of its sections begins.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn ask(&self, block: usize) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let from = self.next.wrapping_add(block * self.next_bytes);
        for at in (0..self.next_bytes).step_by(LINE) {
            // SAFETY: a prefetch reads nothing and faults nowhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(at).cast()) };
        }
    }
}

/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// Asks for the bytes of a block, `ahead` of it.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn ask_ahead(block: *const u8, bytes: usize, ahead: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    for at in (0..bytes).step_by(LINE) {
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(ahead + at).cast()) };
    }
}

/// A tile's activations: pointers to the tile's first element in the arrays of [`Int8Rows`].
#[derive(Clone, Copy)]
pub(crate) struct TileRef {
    pub(crate) codes: *const i8,
    pub(crate) scale: *const f32,
    pub(crate) init: *const i32,
    pub(crate) side: *const i32,
}

impl TileRef {
    /// The tile that starts at row `first`.
    ///
    /// # Safety
    /// The row is within the chunk.
    pub(crate) unsafe fn new(rows: &Int8Rows, first: usize) -> Self {
        let at = first * rows.blocks;
        // SAFETY: within each array.
        unsafe {
            Self {
                codes: rows.codes.add(at * BLOCK),
                scale: rows.scale.add(at),
                init: rows.init.add(at * rows.parts),
                side: rows.side.add(at),
            }
        }
    }
}

/// `out[row][16]` of a tile over `blocks` blocks; rows of `out` lie `stride` f32 apart.
///
/// # Safety
/// All pointers cover `blocks` blocks; `out` holds the tile; the instruction set is available.
pub(crate) type Tile =
    unsafe fn(strip: &StripRef, tile: &TileRef, blocks: usize, out: *mut f32, stride: usize);

/// `FAMILY`: bits a packed code takes.
pub(crate) const FOUR: u8 = 4;
pub(crate) const FIVE: u8 = 5;
pub(crate) const SIX: u8 = 6;
pub(crate) const EIGHT: u8 = 8;

/// `MODE`: what is done with offsets; the last has two scales to a block and no offset.
pub(crate) const PLAIN: u8 = 0;
pub(crate) const MINIMUM: u8 = 1;
pub(crate) const ZERO: u8 = 2;
pub(crate) const HALVES: u8 = 3;

pub(crate) const fn parts(mode: u8) -> usize {
    if mode == HALVES { 2 } else { 1 }
}

pub(crate) const fn block_bytes(family: u8) -> usize {
    match family {
        FOUR => 256,
        FIVE => 320,
        SIX => 384,
        _ => 512,
    }
}

/// The kernels of one scheme, by height of tile, and the bias they expect in `init`.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    by_height: [Tile; 3],
    /// For one row by one or two strips whose blocks carry their scales as f16: it needs no panels of them.
    pub(crate) joined: Option<Tile>,
    /// What was added to a code as the kernel multiplies it.
    pub(crate) bias: i32,
}

impl Kernels {
    /// Kernels for a packed weight; `None` where groups do not follow half blocks, or halves have offsets.
    pub(crate) fn new(isa: Isa, layout: &StripLayout) -> Option<Self> {
        let mode = match (layout.parts_of_block(), layout.scheme.offset) {
            (1, Offset::None) => PLAIN,
            (1, Offset::Min) => MINIMUM,
            (1, Offset::ZeroPoint) => ZERO,
            (2, Offset::None) => HALVES,
            _ => return None,
        };
        let by_height = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::int8_avx512::select(layout.family, mode),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::int8_avx2::select(layout.family, mode),
            _ => select(layout.family, mode),
        };
        let halves = [Some(layout.scheme.scale.dtype()), layout.scheme.offset_dtype()];
        let joined = match isa {
            _ if !layout.joined || halves.into_iter().flatten().any(|dtype| dtype != DType::F16) => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::int8_avx512::select_joined(layout.family, mode),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::int8_avx2::select_joined(layout.family, mode),
            _ => None,
        };
        // The AVX2 kernel multiplies bytes less 128, since its products take signed bytes without saturation.
        let centred = isa == Isa::Avx2 && layout.family == Family::Eight;
        Some(Self { by_height, joined, bias: layout.bias - if centred { 128 } else { 0 } })
    }

    /// The kernel for tiles of `height` rows.
    pub(crate) fn tile(&self, height: usize) -> Tile {
        match height {
            12 => self.by_height[0],
            4 => self.by_height[1],
            _ => self.by_height[2],
        }
    }
}

/// Picks `$tile::<height, family, mode>` for the three heights.
macro_rules! select_tiles {
    ($tile:ident; $family:expr, $mode:expr) => {{
        use $crate::quant::int8::{EIGHT, FIVE, FOUR, HALVES, MINIMUM, PLAIN, SIX, ZERO};
        use $crate::quant::strip::Family;
        macro_rules! heights {
            ($f:ident, $m:ident) => {
                [$tile::<12, $f, $m> as $crate::quant::int8::Tile, $tile::<4, $f, $m>, $tile::<1, $f, $m>]
            };
        }
        macro_rules! modes {
            ($f:ident) => {
                match $mode {
                    PLAIN => heights!($f, PLAIN),
                    MINIMUM => heights!($f, MINIMUM),
                    ZERO => heights!($f, ZERO),
                    _ => heights!($f, HALVES),
                }
            };
        }
        match $family {
            Family::Four => modes!(FOUR),
            Family::Five => modes!(FIVE),
            Family::Six => modes!(SIX),
            Family::Eight => modes!(EIGHT),
        }
    }};
}
pub(crate) use select_tiles;

/// Picks `$tile::<family, mode>` where scales of such a scheme come as f16 with each block.
macro_rules! select_joined_tile {
    ($tile:ident; $family:expr, $mode:expr) => {{
        use $crate::quant::int8::{EIGHT, FIVE, FOUR, MINIMUM, PLAIN};
        use $crate::quant::strip::Family;
        match ($family, $mode) {
            (Family::Four, PLAIN) => Some($tile::<FOUR, PLAIN> as $crate::quant::int8::Tile),
            (Family::Four, MINIMUM) => Some($tile::<FOUR, MINIMUM>),
            (Family::Five, PLAIN) => Some($tile::<FIVE, PLAIN>),
            (Family::Five, MINIMUM) => Some($tile::<FIVE, MINIMUM>),
            (Family::Eight, PLAIN) => Some($tile::<EIGHT, PLAIN>),
            _ => None,
        }
    }};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use select_joined_tile;

/// Bytes of a block with its scales, and offsets where `mode` has them, as f16.
pub(crate) const fn joined_bytes(family: u8, mode: u8) -> usize {
    block_bytes(family) + 2 * ROWS * if mode == MINIMUM { 2 } else { 1 }
}

fn select(family: Family, mode: u8) -> [Tile; 3] {
    select_tiles!(tile; family, mode)
}

const fn family_of(bits: u8) -> Family {
    match bits {
        FOUR => Family::Four,
        FIVE => Family::Five,
        SIX => Family::Six,
        _ => Family::Eight,
    }
}

/// The scalar twin: the formula, in the packed order.
unsafe fn tile<const HEIGHT: usize, const FAMILY: u8, const MODE: u8>(
    strip: &StripRef,
    tile: &TileRef,
    blocks: usize,
    out: *mut f32,
    stride: usize,
) {
    let (bytes, parts) = (block_bytes(FAMILY), parts(MODE));
    let columns = BLOCK / parts;
    let mut sums = [[0f32; ROWS]; HEIGHT];
    for b in 0..blocks {
        // SAFETY: the block lies within the strip.
        let packed = unsafe { core::slice::from_raw_parts(strip.codes.add(b * strip.stride), bytes) };
        let mut weights = [[0i32; ROWS]; BLOCK];
        for (c, column) in weights.iter_mut().enumerate() {
            for (r, w) in column.iter_mut().enumerate() {
                *w = i32::from(load_code(family_of(FAMILY), packed, r, c));
            }
        }
        for (m, sums) in sums.iter_mut().enumerate() {
            let at = b * HEIGHT + m;
            for part in 0..parts {
                // SAFETY: arrays cover all blocks of the tile and all parts of the strip.
                unsafe {
                    let mut dot = [*tile.init.add((b * parts + part) * HEIGHT + m); ROWS];
                    let panel = (b * parts + part) * ROWS;
                    if MODE == ZERO {
                        for (r, dot) in dot.iter_mut().enumerate() {
                            *dot -= *strip.offsets.add(panel + r) as i32 * *tile.side.add(at);
                        }
                    }
                    for (c, column) in weights.iter().enumerate().skip(part * columns).take(columns) {
                        let x = i32::from(*tile.codes.add(at * BLOCK + c));
                        for (dot, w) in dot.iter_mut().zip(column) {
                            *dot += w * x;
                        }
                    }
                    let scale = *tile.scale.add(at);
                    for (r, sum) in sums.iter_mut().enumerate() {
                        *sum += dot[r] as f32 * (*strip.scales.add(panel + r) * scale);
                        if MODE == MINIMUM {
                            *sum += *strip.offsets.add(panel + r) * f32::from_bits(*tile.side.add(at) as u32);
                        }
                    }
                }
            }
        }
    }
    for (m, sums) in sums.into_iter().enumerate() {
        // SAFETY: `out` holds the tile.
        unsafe { out.add(m * stride).cast::<[f32; ROWS]>().write_unaligned(sums) }
    }
}
