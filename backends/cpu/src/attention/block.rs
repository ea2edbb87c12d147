//! Blocks of keys and values as f32, from a contiguous or a paged cache of any element type and layout.
//!
//! Here, and nowhere deeper, is the difference between the two kinds of cache: which address a position has.

use super::form::BLOCK;
use super::sequences::BlockTable;
use super::view::{View, read_codes, read_row};
use crate::simd::Lanes;
use portolan_ops::DType;

/// Keys, or values, of one sequence and one key head.
#[derive(Clone, Copy)]
pub(super) struct CacheRows {
    pub(super) cache: View<4>,
    pub(super) table: Option<BlockTable>,
    pub(super) sequence: usize,
    pub(super) head: usize,
    /// The positions of the entries, where these are a list and not the positions themselves.
    pub(super) list: Option<*const i32>,
    /// The scale of each entry, where entries are codes.
    pub(super) scale: Option<View<4>>,
}

impl CacheRows {
    /// The addresses of the rows of `count` positions (or entries of the list) from `start`, at most [`BLOCK`].
    ///
    /// # Safety
    /// The positions lie within the cache (the entries within the list), and their pages were checked.
    pub(super) unsafe fn addresses(&self, start: usize, count: usize) -> [*mut u8; BLOCK] {
        let step = self.cache.step(1);
        let mut addresses = [core::ptr::null_mut(); BLOCK];
        if let Some(list) = self.list {
            for (i, place) in addresses[..count].iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let position = unsafe { *list.add(start + i) } as usize;
                let [outer, row] = match &self.table {
                    None => [self.sequence, position],
                    // SAFETY: the caller's promise.
                    Some(table) => unsafe { table.locate(self.sequence, position) },
                };
                *place = self.cache.at([outer, row, self.head, 0]);
            }
            return addresses;
        }
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

    /// The block of rows from `start`, of `dim` elements: where they lie, or, if `packed` is asked for or they
    /// cannot be read by fours, as f32 in `to`, `padded` floats apart, zero beyond `dim` and from `end` on.
    /// The rows `ahead` go with it, or are asked for here.
    ///
    /// # Safety
    /// As [`CacheRows::addresses`], for the positions up to `end`; `to` has room for BLOCK rows.
    #[inline(always)]
    pub(super) unsafe fn load<L: Lanes>(
        &self,
        start: usize,
        end: usize,
        [dim, padded]: [usize; 2],
        packed: bool,
        to: *mut f32,
        ahead: [*mut u8; BLOCK],
    ) -> Rows {
        let (dtype, inner) = (self.cache.dtype(), self.cache.inner());
        let count = BLOCK.min(end - start);
        // SAFETY: the caller's promise.
        let mut at = unsafe { self.addresses(start, count) };
        if !packed && inner == 1 && dim == padded && self.scale.is_none() {
            let last = at[count - 1];
            at[count..].fill(last);
            return Rows { at, dtype, step: 0, ahead };
        }
        ask(&ahead, self.row_bytes(dim));
        let scales = self.scale.map(|cache| {
            // SAFETY: a scale for every entry.
            unsafe { Self { cache, ..*self }.addresses(start, count) }
        });
        for (row, at) in at[..count].iter_mut().enumerate() {
            // SAFETY: the caller's promise: dim elements of this row, and padded floats of the block.
            unsafe {
                let to = to.add(row * padded);
                match &scales {
                    None => read_row::<L>(dtype, *at, inner, dim, to),
                    Some(scales) => {
                        let scale = scales[row].cast::<f32>().read_unaligned();
                        read_codes(at.cast_const().cast(), inner, scale, dim, to);
                    }
                }
                to.add(dim).write_bytes(0, padded - dim);
            }
        }
        // SAFETY: to has room for BLOCK rows.
        unsafe { to.add(count * padded).write_bytes(0, (BLOCK - count) * padded) };
        let at = core::array::from_fn(|row| to.wrapping_add(row * padded).cast());
        Rows { at, dtype: DType::F32, step: padded, ahead }
    }

    /// The rows of the block from `start`, to be asked for; any address from `end` on.
    ///
    /// # Safety
    /// As [`CacheRows::addresses`], for the positions from `start` up to `end`.
    #[inline(always)]
    pub(super) unsafe fn ahead(&self, start: usize, end: usize) -> [*mut u8; BLOCK] {
        // SAFETY: the caller's promise.
        unsafe { self.addresses(start, BLOCK.min(end.saturating_sub(start))) }
    }

    /// Bytes of a row of `dim` elements, where they follow one another.
    fn row_bytes(&self, dim: usize) -> usize {
        if self.cache.inner() == 1 { dim * self.cache.width() } else { 0 }
    }
}

/// The rows of a block: their elements follow one another, and all of [`BLOCK`] rows can be read.
pub(super) struct Rows {
    /// Where each begins.
    pub(super) at: [*mut u8; BLOCK],
    /// The type of their elements.
    pub(super) dtype: DType,
    /// Floats from one packed row to the next.
    pub(super) step: usize,
    /// The rows of the block that comes next, in the same form. A form that reads rows where they lie asks for a
    /// line of these whenever it has come to the same line of its own: asked for all at once they would keep
    /// its loads waiting, and nothing would be on its way during the computation.
    pub(super) ahead: [*mut u8; BLOCK],
}

/// Asks memory for the first `bytes` of each row, all at once.
#[inline(always)]
fn ask(rows: &[*mut u8; BLOCK], bytes: usize) {
    for row in rows {
        for at in (0..bytes).step_by(LINE) {
            prefetch(row.wrapping_add(at));
        }
    }
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

/// Asks for a line; only a hint, for any address.
#[inline(always)]
pub(super) fn prefetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and faults nowhere.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}
