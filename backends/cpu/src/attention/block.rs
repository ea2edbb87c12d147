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
    ) -> Rows {
        let (dtype, inner) = (self.cache.dtype(), self.cache.inner());
        let count = BLOCK.min(end - start);
        // SAFETY: the caller's promise.
        let mut at = unsafe { self.addresses(start, count) };
        if !packed && inner == 1 && dim == padded && self.scale.is_none() {
            let last = at[count - 1];
            at[count..].fill(last);
            return Rows { at, dtype, step: 0 };
        }
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
        Rows { at, dtype: DType::F32, step: padded }
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
}

/// The rows of keys and values of a block to come, asked for a few lines at a time while the present one is
/// computed on. Asked for at once, they would keep the loads of the present one waiting, and then nothing would
/// be on its way during the computation.
pub(super) struct Ahead {
    /// Keys, then values, then nothing.
    rows: [*mut u8; 2 * BLOCK],
    /// How many rows there are, and the bytes of the longer kind.
    count: usize,
    bytes: usize,
    /// What comes next: which row, and which byte of it.
    row: usize,
    at: usize,
}

impl Ahead {
    /// The block of `keys` and `values` from `start`, of rows of `dims` elements; `shared` says that the keys'
    /// rows are all there is.
    ///
    /// # Safety
    /// As [`CacheRows::addresses`], for the positions from `start` up to `end`.
    #[inline(always)]
    pub(super) unsafe fn new(
        [keys, values]: &[CacheRows; 2],
        start: usize,
        end: usize,
        dims: [usize; 2],
        shared: bool,
    ) -> Self {
        let count = BLOCK.min(end.saturating_sub(start));
        let bytes = keys.row_bytes(dims[0]).max(values.row_bytes(dims[1]));
        let mut rows = [core::ptr::null_mut(); 2 * BLOCK];
        // SAFETY: the caller's promise.
        let [keys, values] = unsafe { [keys.addresses(start, count), values.addresses(start, count)] };
        rows[..count].copy_from_slice(&keys[..count]);
        rows[count..2 * count].copy_from_slice(&values[..count]);
        Self { rows, count: if shared { count } else { 2 * count }, bytes, row: 0, at: 0 }
    }

    /// Asks for two more cache lines, as far as there are any.
    #[inline(always)]
    pub(super) fn ask(&mut self) {
        if self.row >= self.count {
            return;
        }
        let from = self.rows[self.row].wrapping_add(self.at);
        prefetch(from);
        prefetch(from.wrapping_add(LINE));
        self.at += 2 * LINE;
        if self.at >= self.bytes {
            (self.row, self.at) = (self.row + 1, 0);
        }
    }

    /// Asks for all that is left.
    pub(super) fn ask_rest(&mut self) {
        while self.row < self.count {
            self.ask();
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for a line; only a hint, for any address.
#[inline(always)]
fn prefetch(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and faults nowhere.
    unsafe {
        use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}
