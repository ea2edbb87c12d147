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
    /// Calls `run(first, count, address, step)` for positions that lie evenly spaced: all of a contiguous
    /// cache, those of one page otherwise. `first` counts from `start`.
    ///
    /// # Safety
    /// The positions lie within the cache, and their pages were checked.
    #[inline(always)]
    pub(super) unsafe fn runs(
        &self,
        start: usize,
        count: usize,
        mut run: impl FnMut(usize, usize, *mut u8, usize),
    ) {
        let step = self.cache.step(1);
        let Some(table) = &self.table else {
            return run(0, count, self.cache.at([self.sequence, start, self.head, 0]), step);
        };
        let mut first = 0;
        while first < count {
            // SAFETY: the caller's promise.
            let [page, row] = unsafe { table.locate(self.sequence, start + first) };
            let length = (table.page_size - row).min(count - first);
            run(first, length, self.cache.at([page, row, self.head, 0]), step);
            first += length;
        }
    }

    /// Reads `count` rows of `dim` elements into rows of `padded` floats; zero beyond `dim`, and in rows from
    /// `count` to [`BLOCK`].
    ///
    /// # Safety
    /// As [`CacheRows::runs`]; `to` has room for BLOCK rows.
    #[inline(always)]
    pub(super) unsafe fn load<L: Lanes>(
        &self,
        start: usize,
        count: usize,
        dim: usize,
        padded: usize,
        to: *mut f32,
    ) {
        let (dtype, inner) = (self.cache.dtype(), self.cache.inner());
        let mut addresses = [core::ptr::null::<u8>(); BLOCK];
        // SAFETY: the caller's promise.
        unsafe {
            self.runs(start, count, |first, length, address, step| {
                for (i, place) in addresses[first..first + length].iter_mut().enumerate() {
                    *place = address.wrapping_add(i * step);
                }
            });
        }
        for (row, address) in addresses[..count].iter().enumerate() {
            // SAFETY: the caller's promise: dim elements of this row, and padded floats of the block.
            unsafe {
                let to = to.add(row * padded);
                read_row::<L>(dtype, *address, inner, dim, to);
                to.add(dim).write_bytes(0, padded - dim);
            }
        }
        // SAFETY: to has room for BLOCK rows.
        unsafe { to.add(count * padded).write_bytes(0, (BLOCK - count) * padded) };
    }
}
