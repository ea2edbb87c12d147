//! Writes new keys or values into a cache.
//!
//! Rows are copied, or converted, one by one; positions and pages are found and checked first.

use super::block::CacheRows;
use super::form::BLOCK;
use super::sequences::{BlockTable, Lengths};
use super::view::{View, read_row, write_row};
use crate::pool::scratch;
use crate::simd::code::{self, Code, E4m3, E5m2, Int8};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::{Isa, Team};
use portolan_ops::attention::KvCacheWriteSpec;
use portolan_ops::codec::Overflow;
use portolan_ops::{Contract, DType, OpError, QuantScheme, Result};

/// Elements a task converts: enough to be worth a hand-over, some 10 µs.
const ELEMENTS_PER_TASK: usize = 32 << 10;

/// One cache write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheWriteTask {
    op: &'static str,
    x: View<3>,
    cache: View<4>,
    /// The scale of each row, and how it is found, of a cache of codes.
    scale: Option<(View<4>, QuantScheme)>,
    table: Option<BlockTable>,
    lengths: Lengths,
    heads: usize,
    dim: usize,
}

impl CacheWriteTask {
    /// From the base addresses of x, block table (unused for a contiguous cache), q_lens, kv_lens, cache and scale
    /// (unused unless the cache is one of codes).
    pub(crate) fn new(
        spec: &KvCacheWriteSpec,
        x: *const u8,
        table: *const u8,
        [q_lens, kv_lens]: [*const u8; 2],
        [cache, scale]: [*mut u8; 2],
    ) -> Self {
        Self {
            op: spec.name(),
            x: View::new(spec.x(), x as *mut u8),
            cache: View::new(spec.cache(), cache),
            scale: spec.scale().map(|of| View::new(of, scale)).zip(spec.scheme()),
            table: spec.block_table().map(|pages| BlockTable {
                pages: View::new(pages, table as *mut u8),
                page_size: spec.cache().dims()[1],
                num_pages: spec.cache().dims()[0],
            }),
            lengths: Lengths {
                q: View::new(spec.q_lens().device(), q_lens as *mut u8),
                kv: View::new(spec.kv_lens().device(), kv_lens as *mut u8),
                batch: spec.q_lens().count(),
                max: [spec.q_lens().max(), spec.kv_lens().max()],
                tokens: spec.x().dims()[0],
            },
            heads: spec.x().dims()[1],
            dim: spec.x().dims()[2],
        }
    }
}

/// Writes the rows.
///
/// # Errors
/// `Data` when a length is out of range, a q_len is above its kv_len or a page is absent; nothing is written
/// then.
///
/// # Safety
/// The task's buffers are alive, hold what its contract says and are not touched by others meanwhile, and the
/// processor has `isa`.
pub(crate) unsafe fn kv_cache_write(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    task: &CacheWriteTask,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let (sequences, used) = unsafe { task.lengths.read(task.op)? };
    for s in &sequences {
        if s.q_len > s.kv_len {
            let what = format!("q_lens[{0}] is {1}, above kv_lens[{0}] = {2}", s.index, s.q_len, s.kv_len);
            return Err(OpError::Data { op: task.op.into(), what });
        }
        if let Some(table) = &task.table {
            // SAFETY: the lengths are in range, and their bound is what the table reaches.
            unsafe { table.check(task.op, s.index, s.kv_len - s.q_len..s.kv_len)? };
        }
    }
    let row = task.heads * task.dim;
    if row == 0 || used == 0 {
        return Ok(());
    }
    let tokens = (ELEMENTS_PER_TASK / row).max(1);
    team.run_with(used.div_ceil(tokens), max_threads, &|i| {
        let (first, end) = (i * tokens, ((i + 1) * tokens).min(used));
        // Sequences may share a page: a region's tasks write different elements unless the caller's do not.
        for s in &sequences[sequences.partition_point(|s| s.token + s.q_len <= first)..] {
            if s.token >= end {
                break;
            }
            let (from, to) = (first.max(s.token), end.min(s.token + s.q_len));
            let start = s.kv_len - s.q_len + (from - s.token);
            for head in 0..task.heads {
                let rows = CacheRows {
                    cache: task.cache,
                    table: task.table,
                    sequence: s.index,
                    list: None,
                    scale: None,
                };
                scratch::with(task.dim.min(PIECE) * size_of::<f32>(), |buffer| {
                    let buffer = buffer.cast();
                    let count = to - from;
                    dispatch(isa, Copy { task, rows, token: from, start, count, head, buffer });
                });
            }
        }
    });
    Ok(())
}

/// `count` tokens of one head, to consecutive positions.
struct Copy<'a> {
    task: &'a CacheWriteTask,
    rows: CacheRows,
    token: usize,
    start: usize,
    count: usize,
    head: usize,
    /// Of as many floats as are converted at a time.
    buffer: *mut f32,
}

impl Kernel for Copy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (task, dim) = (self.task, self.task.dim);
        let mut addresses = [core::ptr::null_mut(); BLOCK];
        let mut scales = addresses;
        for first in (0..self.count).step_by(BLOCK) {
            let count = BLOCK.min(self.count - first);
            // SAFETY: `kv_cache_write` checked lengths and pages.
            unsafe { self.rows.addresses(self.head, self.start + first, count, &mut addresses) };
            if let Some((cache, scheme)) = task.scale {
                // SAFETY: as above; there is a scale for every row.
                unsafe {
                    let rows = CacheRows { cache, ..self.rows };
                    rows.addresses(self.head, self.start + first, count, &mut scales);
                    for (row, (&to, &scale)) in addresses[..count].iter().zip(&scales).enumerate() {
                        let from = task.x.at([self.token + first + row, self.head, 0]);
                        match scheme.code {
                            DType::F8E4M3 => self.quantize::<L, E4m3>(&scheme, from, to, scale.cast()),
                            DType::F8E5M2 => self.quantize::<L, E5m2>(&scheme, from, to, scale.cast()),
                            _ => self.quantize::<L, Int8>(&scheme, from, to, scale.cast()),
                        }
                    }
                }
                continue;
            }
            for (row, &to) in addresses[..count].iter().enumerate() {
                let from = task.x.at([self.token + first + row, self.head, 0]);
                let mut done = 0;
                while done < dim {
                    let n = PIECE.min(dim - done);
                    let from = from.wrapping_add(done * task.x.step(2));
                    let to = to.wrapping_add(done * task.cache.step(3));
                    // SAFETY: n elements from `done` on, of a row of x and of the cache.
                    unsafe {
                        read_row::<L>(task.x.dtype(), from, task.x.inner(), n, self.buffer);
                        match task.cache.dtype() {
                            DType::F8E4M3 => self.encode::<L, E4m3>(n, to),
                            DType::F8E5M2 => self.encode::<L, E5m2>(n, to),
                            dtype => write_row::<L>(dtype, self.buffer, task.cache.inner(), n, to),
                        }
                    }
                    done += n;
                }
            }
        }
    }
}

impl Copy<'_> {
    /// Writes one row as codes and their scale, as the scheme defines them. The row is read twice, a piece at a time:
    /// first for its largest magnitude.
    ///
    /// # Safety
    /// A row of x, one of the cache and its scale.
    #[inline(always)]
    unsafe fn quantize<L: Lanes, C: Code>(
        &self,
        scheme: &QuantScheme,
        from: *const u8,
        to: *mut u8,
        scale_to: *mut f32,
    ) {
        let (dim, inner) = (self.task.dim, self.task.cache.inner());
        let mut largest = 0f32;
        for first in (0..dim).step_by(PIECE) {
            // The bits of magnitudes are in their order, with NaN above infinity, so integers compare them.
            // SAFETY: the caller's promise; the buffer holds a piece.
            let piece =
                unsafe { core::slice::from_raw_parts(self.buffer, self.read_piece::<L>(from, first)) };
            let bits = piece.iter().fold(0, |top, x| u32::max(top, x.abs().to_bits()));
            largest = f32::from_bits(u32::max(largest.to_bits(), bits));
        }
        let (scale, top) = (scheme.block_scale(largest), scheme.symmetric_top());
        // SAFETY: the caller's promise.
        unsafe { scale_to.write_unaligned(scale) };
        for first in (0..dim).step_by(PIECE) {
            // SAFETY: as above.
            let x =
                unsafe { core::slice::from_raw_parts_mut(self.buffer, self.read_piece::<L>(from, first)) };
            // Where there are no codes but 0, so that a quotient is a number.
            let usable = scale > 0.0;
            for x in x.iter_mut() {
                *x = if usable { (*x / scale).clamp(-top, top) } else { 0.0 };
            }
            let n = x.len();
            // SAFETY: the caller's promise: a piece from `first` on.
            unsafe { self.encode::<L, C>(n, to.add(first * inner)) };
        }
    }

    /// Reads the elements from `first` on of the row that begins at `from` into the buffer: as many as it holds.
    ///
    /// # Safety
    /// A row of x, `first` within it.
    #[inline(always)]
    unsafe fn read_piece<L: Lanes>(&self, from: *const u8, first: usize) -> usize {
        let x = &self.task.x;
        let n = PIECE.min(self.task.dim - first);
        // SAFETY: the caller's promise; the buffer holds a piece.
        unsafe { read_row::<L>(x.dtype(), from.wrapping_add(first * x.step(2)), x.inner(), n, self.buffer) };
        n
    }

    /// Writes the first `n` numbers of the buffer as codes.
    ///
    /// # Safety
    /// `to` has room for as many, as far apart as the cache's elements.
    #[inline(always)]
    unsafe fn encode<L: Lanes, C: Code>(&self, n: usize, to: *mut u8) {
        let inner = self.task.cache.inner();
        // SAFETY: the caller's promise; the buffer holds n numbers.
        unsafe {
            if inner != 1 {
                for i in 0..n {
                    *to.add(i * inner) = C::encode_one(*self.buffer.add(i), Overflow::Saturate);
                }
                return;
            }
            for i in (0..n).step_by(L::LEN) {
                let count = L::LEN.min(n - i);
                let x = L::load_partial(self.buffer.add(i), count);
                code::store::<L, C>(to, i, count, x, Overflow::Saturate);
            }
        }
    }
}

/// Elements converted at a time.
const PIECE: usize = 4096;
