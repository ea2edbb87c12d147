//! Products of small matrices in scratch, held in registers: a few rows against vectors of columns.

use crate::simd::Lanes;

/// Rows of a tile. Four rows of two vectors are eight independent chains, which hide the latency of two
/// multiply-adds a cycle, and fit the sixteen registers of AVX2 with what they are multiplied by.
pub(super) const ROWS: usize = 4;

/// A tile of sums.
pub(super) type Tile<L, const V: usize> = [[L; V]; ROWS];

/// The factors that are one number for a row and a term.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) start: *const f32,
    /// From row to row.
    pub(super) row: usize,
    /// From term to term.
    pub(super) term: usize,
}

/// `sums[row][..] += Σ_{i < terms} left[row, i] · right[i][..]`, term after term.
///
/// # Safety
/// `left` has ROWS rows of `terms` numbers; `right`, `terms` rows of V vectors, `stride` apart.
#[inline(always)]
pub(super) unsafe fn accumulate<L: Lanes, const V: usize>(
    sums: &mut Tile<L, V>,
    left: Left,
    right: *const f32,
    stride: usize,
    terms: usize,
) {
    let mut held = *sums;
    for i in 0..terms {
        // SAFETY: the caller's promise.
        unsafe {
            let from = right.add(i * stride);
            let mut columns = [L::zero(); V];
            for (v, columns) in columns.iter_mut().enumerate() {
                *columns = L::load(from.add(v * L::LEN));
            }
            for (row, held) in held.iter_mut().enumerate() {
                let factor = L::splat(*left.start.add(row * left.row + i * left.term));
                for v in 0..V {
                    held[v] = factor.mul_add(columns[v], held[v]);
                }
            }
        }
    }
    *sums = held;
}

/// Writes a tile.
///
/// # Safety
/// ROWS rows of V vectors, `stride` apart, are writable.
#[inline(always)]
pub(super) unsafe fn store_tile<L: Lanes, const V: usize>(sums: &Tile<L, V>, to: *mut f32, stride: usize) {
    for (r, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { sum.store(to.add(r * stride + v * L::LEN)) };
        }
    }
}
