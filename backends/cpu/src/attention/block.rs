//! Blocks of keys and values as f32, from a contiguous or a paged cache of any element type and layout.
//!
//! Here, and nowhere deeper, is the difference between the two kinds of cache: which address a position has.

use super::form::BLOCK;
use super::sequences::BlockTable;
use super::view::{View, read_row};
use crate::simd::Lanes;

/// Keys, or values, of one sequence and one key head.
#[derive(Clone, Copy)]
pub(super) struct CacheRows {
    pub(super) cache: View<4>,
    pub(super) table: Option<BlockTable>,
    pub(super) sequence: usize,
    pub(super) head: usize,
}

impl CacheRows {
    /// The addresses of the rows of `count` positions from `start`, at most [`BLOCK`].
    ///
    /// # Safety
    /// The positions lie within the cache, and their pages were checked.
    pub(super) unsafe fn addresses(&self, start: usize, count: usize) -> [*mut u8; BLOCK] {
        let step = self.cache.step(1);
        let mut addresses = [core::ptr::null_mut(); BLOCK];
        let mut first = 0;
        while first < count {
            let (index, length) = match &self.table {
                None => ([self.sequence, start, self.head, 0], count),
                Some(table) => {
                    // SAFETY: the caller's promise.
                    let [page, row] = unsafe { table.locate(self.sequence, start + first) };
                    ([page, row, self.head, 0], (table.page_size - row).min(count - first))
                }
            };
            let address = self.cache.at(index);
            for (i, place) in addresses[first..first + length].iter_mut().enumerate() {
                *place = address.wrapping_add(i * step);
            }
            first += length;
        }
        addresses
    }

    /// Reads the rows of a block from `start`, of `dim` elements, into rows of `padded` floats; zero beyond `dim`
    /// and in rows from `end` on. Asks for the block from position `ahead.1` of `ahead.0`, so that it is on its
    /// way while this one is used.
    ///
    /// # Safety
    /// As [`CacheRows::addresses`], for the positions of both up to `end`; `to` has room for BLOCK rows.
    #[inline(always)]
    pub(super) unsafe fn load<L: Lanes>(
        &self,
        start: usize,
        end: usize,
        ahead: (&CacheRows, usize),
        [dim, padded]: [usize; 2],
        to: *mut f32,
    ) {
        let (dtype, inner) = (self.cache.dtype(), self.cache.inner());
        let (count, next) = (BLOCK.min(end - start), ahead.1.min(end));
        let next_count = BLOCK.min(end - next);
        // SAFETY: the caller's promise.
        let (rows, ahead) = unsafe { (self.addresses(start, count), ahead.0.addresses(next, next_count)) };
        let bytes = if inner == 1 { dim * self.cache.width() } else { 0 };
        for (row, address) in rows[..count].iter().enumerate() {
            // SAFETY: the caller's promise: dim elements of this row, and padded floats of the block.
            unsafe {
                let to = to.add(row * padded);
                if row < next_count {
                    prefetch(ahead[row], bytes);
                }
                read_row::<L>(dtype, *address, inner, dim, to);
                to.add(dim).write_bytes(0, padded - dim);
            }
        }
        // SAFETY: to has room for BLOCK rows.
        unsafe { to.add(count * padded).write_bytes(0, (BLOCK - count) * padded) };
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the lines of `bytes` bytes; only a hint, for any address.
#[inline(always)]
fn prefetch(from: *const u8, bytes: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..bytes).step_by(LINE) {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, bytes);
}
