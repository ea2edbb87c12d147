//! The table of microkernels: for each element type and instruction set, the tile and the packed forms.
//!
//! Portable microkernels are here, those of x86 in `kernel_x86`; `pack` produces what they read.

use super::pack::{self, Strip};
use super::pack_codes;
use crate::Isa;
use portolan_ops::DType;

/// Packs one strip of a factor.
pub(super) type PackFn = unsafe fn(&Strip, *mut u8);

/// `tile(rows, steps, a, b, acc, accumulate)`: `acc[rows, nr] (+)= a · b` over `steps` packed elements.
///
/// `a` is `[steps, rows]`, `b` its header and `[steps, nr]`, `acc` contiguous. Each element of the tile is
/// summed in the order of the steps from zero, then added to what `acc` holds: the same for any `rows`.
pub(super) type TileFn = unsafe fn(usize, usize, *const u8, Panel, *mut u8, bool);

/// A panel of the second factor, and what tiles ask memory for while they go through it.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub(super) at: *const u8,
    /// Asked for, not read: it may point anywhere.
    pub(super) ahead: *const u8,
    /// Bytes asked for at each step.
    pub(super) stride: usize,
}

/// A microkernel and the shape of what it reads.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// Rows of a full tile; any smaller number is accepted too.
    pub(super) mr: usize,
    /// Columns of a tile, always full: missing ones are packed as zeros.
    pub(super) nr: usize,
    /// Products in one packed element: 1 for floats, 2 or 4 for i8.
    pub(super) group: usize,
    /// Bytes of a packed element and of an accumulator.
    pub(super) elem: usize,
    /// Packed elements in front of a strip of b: 0, or `nr` starting values of the accumulators.
    pub(super) header: usize,
    pub(super) tile: TileFn,
    /// The same tile, bit for bit, over b in its own 16-bit type.
    pub(super) narrow_tile: Option<TileFn>,
    pub(super) pack_a: PackFn,
    pub(super) pack_b: PackFn,
}

impl Kernel {
    /// The kernel for factors of these types.
    pub(super) fn of(isa: Isa, a: DType, b: DType) -> Kernel {
        let kernel = match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => super::kernel_x86::avx512(a, b),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => super::kernel_x86::avx2(a, b),
            _ => portable(a, b),
        };
        Kernel {
            pack_a: pack_codes::of(isa, a).unwrap_or(kernel.pack_a),
            pack_b: pack_codes::of(isa, b).unwrap_or(kernel.pack_b),
            ..kernel
        }
    }
}

/// Tiles of 4 × 8 (f32, i32) or 4 × 4 (f64): 8 accumulators of the 16 registers of a 128-bit machine.
fn portable(a: DType, b: DType) -> Kernel {
    let float = Kernel {
        mr: 4,
        nr: 8,
        group: 1,
        elem: 4,
        header: 0,
        tile: |rows, steps, a, b, acc, accumulate| {
            // SAFETY: promised by the caller of the tile.
            unsafe {
                tile_rows::<f32, 8>(rows, steps, a, b, acc, accumulate, |c, a, b| c + a * b, |x, y| x + y)
            }
        },
        narrow_tile: None,
        pack_a: pack::floats(a),
        pack_b: pack::floats(b),
    };
    match a {
        DType::F64 => Kernel {
            nr: 4,
            elem: 8,
            tile: |rows, steps, a, b, acc, accumulate| {
                // SAFETY: promised by the caller of the tile.
                unsafe {
                    tile_rows::<f64, 4>(rows, steps, a, b, acc, accumulate, |c, a, b| c + a * b, |x, y| x + y)
                }
            },
            ..float
        },
        DType::I8 => Kernel {
            group: 2,
            tile: |rows, steps, a, b, acc, accumulate| {
                // SAFETY: promised by the caller of the tile.
                unsafe {
                    tile_rows::<i32, 8>(rows, steps, a, b, acc, accumulate, add_pair, i32::wrapping_add)
                }
            },
            pack_a: pack::i8_pairs,
            pack_b: pack::i8_pairs,
            ..float
        },
        _ => float,
    }
}

/// `c + a0·b0 + a1·b1` for two i16 in each packed element; the sum of two such products fits an i32.
fn add_pair(c: i32, a: i32, b: i32) -> i32 {
    let low = i32::from(a as i16) * i32::from(b as i16);
    let high = (a >> 16) * (b >> 16);
    c.wrapping_add(low.wrapping_add(high))
}

/// Calls the tile of the given number of rows.
///
/// # Safety
/// As [`TileFn`]: a holds `steps·rows` elements, b `steps·N`, acc `rows·N`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn tile_rows<E: Copy + Default, const N: usize>(
    rows: usize,
    steps: usize,
    a: *const u8,
    b: Panel,
    acc: *mut u8,
    accumulate: bool,
    fma: impl Fn(E, E, E) -> E + Copy,
    add: impl Fn(E, E) -> E + Copy,
) {
    // SAFETY: promised by the caller; packed buffers are aligned for their element.
    unsafe {
        let a = std::slice::from_raw_parts(a.cast::<E>(), steps * rows);
        let b = std::slice::from_raw_parts(b.at.cast::<[E; N]>(), steps);
        let acc = std::slice::from_raw_parts_mut(acc.cast::<[E; N]>(), rows);
        match rows {
            1 => tile::<E, 1, N>(a, b, acc, accumulate, fma, add),
            2 => tile::<E, 2, N>(a, b, acc, accumulate, fma, add),
            3 => tile::<E, 3, N>(a, b, acc, accumulate, fma, add),
            _ => tile::<E, 4, N>(a, b, acc, accumulate, fma, add),
        }
    }
}

/// The outer products of the columns of a and the rows of b, summed in registers.
#[inline(always)]
fn tile<E: Copy + Default, const R: usize, const N: usize>(
    a: &[E],
    b: &[[E; N]],
    acc: &mut [[E; N]],
    accumulate: bool,
    fma: impl Fn(E, E, E) -> E,
    add: impl Fn(E, E) -> E,
) {
    let mut sums = [[E::default(); N]; R];
    for (a, b) in a.chunks_exact(R).zip(b) {
        for (sums, &a) in sums.iter_mut().zip(a) {
            for (sum, &b) in sums.iter_mut().zip(b) {
                *sum = fma(*sum, a, b);
            }
        }
    }
    for (acc, sums) in acc.iter_mut().zip(&sums) {
        for (acc, &sum) in acc.iter_mut().zip(sums) {
            *acc = if accumulate { add(*acc, sum) } else { sum };
        }
    }
}
