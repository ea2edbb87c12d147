//! Blocks of keys and values as f32, from a contiguous or a paged cache of any element type and layout.
//!
//! Here, and nowhere deeper, is the difference between the two kinds of cache: which address a position has.

use super::form::BLOCK;
use super::sequences::BlockTable;
use super::view::{View, read_codes, read_row};
use crate::simd::{Lanes, apart};
use core::ops::Range;
use portolan_ops::DType;

/// Addresses that lie `step` apart.
#[inline(always)]
fn apart(first: *mut u8, step: usize, to: &mut [*mut u8]) {
    for (i, place) in to.iter_mut().enumerate() {
        *place = first.wrapping_add(i * step);
    }
}

/// Where the rows of a block begin.
pub(super) type Addresses = [*mut u8; BLOCK];

/// Keys, or values, of one sequence.
#[derive(Clone, Copy)]
pub(super) struct CacheRows {
    pub(super) cache: View<4>,
    pub(super) table: Option<BlockTable>,
    pub(super) sequence: usize,
    /// The positions of the entries, where these are a list and not the positions themselves.
    pub(super) list: Option<*const i32>,
    /// The scale of each entry, where entries are codes.
    pub(super) scale: Option<View<4>>,
}

impl CacheRows {
    /// The addresses of the rows of one key head at `count` positions (or entries of the list) from `start`, at most
    /// [`BLOCK`]; then the last of them again.
    ///
    /// # Safety
    /// The positions lie within the cache (the entries within the list), and their pages were checked.
    pub(super) unsafe fn addresses(&self, head: usize, start: usize, count: usize, to: &mut Addresses) {
        if let Some(list) = self.list {
            for (i, place) in to[..count].iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                let position = unsafe { *list.add(start + i) } as usize;
                let [outer, row] = match &self.table {
                    None => [self.sequence, position],
                    // SAFETY: the caller's promise.
                    Some(table) => unsafe { table.locate(self.sequence, position) },
                };
                *place = self.cache.at([outer, row, head, 0]);
            }
        } else if let Some(table) = &self.table {
            let mut first = 0;
            while first < count {
                // SAFETY: the caller's promise.
                let [page, row] = unsafe { table.locate(self.sequence, start + first) };
                let length = (table.page_size - row).min(count - first);
                let address = self.cache.at([page, row, head, 0]);
                apart(address, self.cache.step(1), &mut to[first..first + length]);
                first += length;
            }
        } else {
            apart(self.cache.at([self.sequence, start, head, 0]), self.cache.step(1), &mut to[..count]);
        }
        if let Some(&last) = to[..count].last() {
            to[count..].fill(last);
        }
    }

    /// The addresses of rows to be asked for while `head` of the block from `start` is worked on, one of the heads
    /// `heads`: as many as a block has. Any addresses from `end` on.
    ///
    /// Where the heads lie one behind another without gaps, a part of the next block in the order of memory; else
    /// the rows of the next head.
    ///
    /// # Safety
    /// As [`CacheRows::addresses`], for the positions from `start` up to `end`.
    pub(super) unsafe fn ahead(
        &self,
        head: usize,
        heads: Range<usize>,
        [start, end]: [usize; 2],
        to: &mut Addresses,
    ) {
        let (step, whole) = (self.cache.step(2), self.cache.step(1));
        if self.list.is_none() && self.table.is_none() && step.checked_mul(heads.len()) == Some(whole) {
            let first = self.cache.at([self.sequence, start + BLOCK, heads.start, 0]);
            return apart(first.wrapping_add((head - heads.start) * BLOCK * step), step, to);
        }
        let (head, start) =
            if head + 1 < heads.end { (head + 1, start) } else { (heads.start, start + BLOCK) };
        // SAFETY: the caller's promise.
        unsafe { self.addresses(head, start, BLOCK.min(end.saturating_sub(start)), to) };
    }

    /// A block of `count` rows of `dim` elements, the rows of `head` from `start`, which are at `at`: where they lie, or,
    /// if `packed` is asked for or they cannot be read by fours, as f32 in `to`, `padded` floats apart and `own` their
    /// addresses, zero beyond `dim` and `count`. The rows `ahead` go with it, or are asked for here.
    ///
    /// # Safety
    /// As [`CacheRows::addresses`], which gave `at`; `to` has room for BLOCK rows.
    #[allow(clippy::too_many_arguments, reason = "the parts of one block, which callers hold apart")]
    pub(super) unsafe fn load<'a, L: Lanes>(
        &self,
        at: &'a Addresses,
        [head, start, count]: [usize; 3],
        [dim, padded]: [usize; 2],
        packed: bool,
        to: *mut f32,
        own: &'a mut Addresses,
        ahead: &'a Addresses,
    ) -> Rows<'a> {
        let (dtype, inner) = (self.cache.dtype(), self.cache.inner());
        if !packed && inner == 1 && dim == padded && self.scale.is_none() {
            return Rows { at, dtype, step: 0, ahead };
        }
        ask(ahead, self.row_bytes(dim));
        let scales = self.scale.map(|cache| {
            let mut scales = *at;
            // SAFETY: a scale for every entry.
            unsafe { Self { cache, ..*self }.addresses(head, start, count, &mut scales) };
            scales
        });
        let shape = [inner, count, dim, padded];
        // SAFETY: the caller's promise: these rows, and as many floats of BLOCK rows.
        unsafe { copy::<L>(dtype, at, scales.as_ref(), shape, to) };
        for (row, own) in own.iter_mut().enumerate() {
            *own = to.wrapping_add(row * padded).cast();
        }
        Rows { at: own, dtype: DType::F32, step: padded, ahead }
    }

    /// Bytes of a row of `dim` elements, where they follow one another.
    fn row_bytes(&self, dim: usize) -> usize {
        if self.cache.inner() == 1 { dim * self.cache.width() } else { 0 }
    }
}

/// The rows of a block: their elements follow one another, and all of [`BLOCK`] rows can be read.
pub(super) struct Rows<'a> {
    /// Where each begins.
    pub(super) at: &'a Addresses,
    /// The type of their elements.
    pub(super) dtype: DType,
    /// Floats from one packed row to the next.
    pub(super) step: usize,
    /// As many rows to come, in the order of memory. A form that reads rows where they lie asks for a line of these
    /// whenever it has come to the same line of its own: asked for all at once they would keep its loads waiting, and
    /// nothing would be on its way during the computation.
    pub(super) ahead: &'a Addresses,
}

impl Rows<'_> {
    /// As they are, but for the addresses.
    pub(super) fn with<'a>(&'a self, at: &'a Addresses) -> Rows<'a> {
        Rows { at, ..*self }
    }
}

apart! {
    /// Copies `count` rows of `dim` elements that lie `inner` apart as f32, each times its scale where there are scales:
    /// rows `padded` apart, zero beyond `dim` and `count`.
    ///
    /// # Safety
    /// The first `count` of the addresses are of such rows and of scales; `to` has room for BLOCK rows.
    unsafe fn copy<'a, L>(
        dtype: DType,
        at: &'a Addresses,
        scales: Option<&'a Addresses>,
        shape: [usize; 4],
        to: *mut f32,
    ) {
        let [inner, count, dim, padded] = shape;
        for (row, at) in at[..count].iter().enumerate() {
            // SAFETY: the caller's promise: dim elements of this row, and padded floats of the block.
            unsafe {
                let to = to.add(row * padded);
                match scales {
                    None => read_row::<L>(dtype, *at, inner, dim, to),
                    Some(scales) => {
                        let scale = scales[row].cast::<f32>().read_unaligned();
                        read_codes::<L>(dtype, *at, inner, scale, dim, to);
                    }
                }
                to.add(dim).write_bytes(0, padded - dim);
            }
        }
        // SAFETY: to has room for BLOCK rows.
        unsafe { to.add(count * padded).write_bytes(0, (BLOCK - count) * padded) };
    }
}

/// Asks memory for the first `bytes` of each row, all at once.
#[inline(always)]
fn ask(rows: &Addresses, bytes: usize) {
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
