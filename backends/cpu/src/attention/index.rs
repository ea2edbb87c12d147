//! Index logits: products of a token's heads with keys, rectified, weighted and summed over heads.
//!
//! Heads lie over lanes as rows do in attention (`form`), so the products are the same microkernels. A block of
//! keys is read once for a group of tokens. Every logit is computed by itself, in an order that only the number of
//! heads decides.

use super::block::CacheRows;
use super::form::{self, BLOCK, Form};
use super::sequences::{BlockTable, Lengths, Sequence};
use super::unit::{CHUNK, Choice, Visit};
use super::view::{View, read_row};
use crate::pool::scratch;
use crate::simd::{Lanes, apart, dispatch};
use crate::{Isa, Team};
use core::ops::Range;
use portolan_ops::attention::IndexLogitsSpec;
use portolan_ops::{Contract, Result, Unsupported};

/// Queries that share a block of keys, in floats: 256 KiB, which stay in a second-level cache.
const QUERIES: usize = 64 << 10;

/// Heads, and elements of one, at most: the queries of one token then take 64 MiB.
const MAX: usize = 4096;

/// Whether the kernel takes this call.
pub(crate) fn plan_index(spec: &IndexLogitsSpec) -> core::result::Result<(), Unsupported> {
    if spec.q().dims()[1].max(spec.q().dims()[2]) > MAX {
        return Err(Unsupported::Shape("num_heads and head_dim are at most 4096"));
    }
    Ok(())
}

/// One call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexTask {
    op: &'static str,
    q: View<3>,
    k: View<4>,
    /// The scale of each key, where keys are codes.
    k_scale: Option<View<4>>,
    table: Option<BlockTable>,
    weights: View<2>,
    lengths: Lengths,
    logits: View<2>,
    heads: usize,
    dim: usize,
    ratio: usize,
    /// Keys of a row of logits.
    width: usize,
}

impl IndexTask {
    /// From the addresses of q, k, its scales (unused where there are none), block table (unused for a contiguous
    /// cache), weights, q_lens, kv_lens and logits.
    pub(crate) fn new(
        spec: &IndexLogitsSpec,
        [q, k, k_scale, table, weights, q_lens, kv_lens]: [*const u8; 7],
        logits: *mut u8,
    ) -> Result<Self> {
        let [outer, inner, dim] = [spec.k().dims()[0], spec.k().dims()[1], spec.k().dims()[2]];
        Ok(Self {
            op: spec.name(),
            q: View::new(spec.q(), q.cast_mut()),
            k: View::new(&spec.k().reshape(&[outer, inner, 1, dim])?, k.cast_mut()),
            k_scale: spec.k_scale().map(|scale| View::new(scale, k_scale.cast_mut())),
            table: spec.block_table().map(|pages| BlockTable {
                pages: View::new(pages, table.cast_mut()),
                page_size: inner,
                num_pages: outer,
            }),
            weights: View::new(spec.weights(), weights.cast_mut()),
            lengths: Lengths {
                q: View::new(spec.q_lens().device(), q_lens.cast_mut()),
                kv: View::new(spec.kv_lens().device(), kv_lens.cast_mut()),
                batch: spec.q_lens().count(),
                max: [spec.q_lens().max(), spec.kv_lens().max()],
                tokens: spec.q().dims()[0],
            },
            logits: View::new(spec.logits(), logits),
            heads: spec.q().dims()[1],
            dim,
            ratio: spec.ratio() as usize,
            width: spec.logits().dims()[1],
        })
    }

    /// Keys that token `t` of a sequence sees.
    fn visible(&self, s: &Sequence, t: usize) -> usize {
        (s.kv_len + t + 1).saturating_sub(s.q_len).min(s.kv_len) / self.ratio
    }

    /// dim, padded so that groups of 4 elements are whole.
    fn padded(&self) -> usize {
        self.dim.next_multiple_of(4)
    }

    /// Hides keys from a token.
    ///
    /// # Safety
    /// They are elements of its row of logits.
    unsafe fn hide(&self, token: usize, keys: Range<usize>) {
        for key in keys {
            // SAFETY: the caller's promise.
            unsafe { self.logits.at([token, key]).cast::<f32>().write_unaligned(f32::NEG_INFINITY) };
        }
    }
}

/// Computes index logits.
///
/// # Errors
/// `Data` when a length is out of range or a needed page is absent; nothing is written then.
///
/// # Safety
/// The task's buffers are alive, hold what its contract says and are not touched by others meanwhile, logits
/// overlap nothing, `plan_index` accepted the call, and the processor has `isa`.
pub(crate) unsafe fn index_logits(team: &Team, max_threads: usize, isa: Isa, task: &IndexTask) -> Result<()> {
    // SAFETY: the caller's promise.
    let (sequences, used) = unsafe { task.lengths.read(task.op)? };
    if let Some(table) = &task.table {
        for s in &sequences {
            // SAFETY: the lengths are in range, and their bound is what the table reaches.
            unsafe { table.check(task.op, s.index, 0..s.kv_len / task.ratio)? };
        }
    }
    let group = (QUERIES / (task.heads * task.padded()).max(1)).clamp(1, 64);
    let mut pieces = Vec::new();
    for s in &sequences {
        for first in (0..s.q_len).step_by(group) {
            let tokens = first..(first + group).min(s.q_len);
            pieces.extend((0..task.width).step_by(CHUNK).map(|key| (*s, tokens.clone(), key)));
        }
    }
    team.run_with(pieces.len(), max_threads, &|i| {
        let (sequence, tokens, first) = pieces[i].clone();
        let piece = Piece { task, sequence, tokens, keys: first..(first + CHUNK).min(task.width) };
        let floats = dispatch(isa, Choice { isa, rows: task.heads, visit: RoomLen(&piece) });
        // The working memory is taken out here: a closure inside would not be compiled for the instruction set.
        scratch::with(floats * size_of::<f32>(), |base| {
            dispatch(isa, Choice { isa, rows: task.heads, visit: Run { piece: &piece, base: base.cast() } });
        });
    });
    for token in used..task.lengths.tokens {
        // SAFETY: the caller's promise; the row belongs to no sequence.
        unsafe { task.hide(token, 0..task.width) };
    }
    Ok(())
}

/// Some tokens of a sequence against some keys.
struct Piece<'a> {
    task: &'a IndexTask,
    sequence: Sequence,
    tokens: Range<usize>,
    keys: Range<usize>,
}

impl Piece<'_> {
    /// Floats of each part of the working memory: a block of keys, scores, one row, and of every token and panel of
    /// heads queries and weights.
    #[inline(always)]
    fn room<L: Lanes, F: Form>(&self) -> [usize; 5] {
        let (dim, width) = (self.task.padded(), F::width::<L>());
        let panels = self.tokens.len() * self.task.heads.div_ceil(F::rows::<L>());
        [BLOCK * dim, BLOCK * width, dim.max(BLOCK), panels * F::query_len::<L>(dim), panels * width]
            .map(|len| len.next_multiple_of(16))
    }
}

struct RoomLen<'a>(&'a Piece<'a>);

impl Visit for RoomLen<'_> {
    type Output = usize;

    #[inline(always)]
    fn visit<L: Lanes, F: Form>(self) -> usize {
        self.0.room::<L, F>().iter().sum()
    }
}

struct Run<'a> {
    piece: &'a Piece<'a>,
    base: *mut f32,
}

impl Visit for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn visit<L: Lanes, F: Form>(self) {
        let mut at = self.base;
        let room = self.piece.room::<L, F>().map(|len| {
            let start = at;
            at = at.wrapping_add(len);
            start
        });
        // SAFETY: the promise of `index_logits`; the room was measured by the same function.
        unsafe { self.piece.run::<L, F>(room) }
    }
}

impl Piece<'_> {
    unsafe fn run<L: Lanes, F: Form>(&self, [block, scores, row, queries, weights]: [*mut f32; 5]) {
        let Piece { task, sequence, tokens, keys } = self;
        let (dim, width, panels) = (task.padded(), F::width::<L>(), task.heads.div_ceil(F::rows::<L>()));
        let cache = CacheRows {
            cache: task.k,
            table: task.table,
            sequence: sequence.index,
            list: None,
            scale: task.k_scale,
        };
        let end = task.visible(sequence, tokens.end - 1).min(keys.end);
        // SAFETY: the promise of `index_logits`: keys up to `end` are visible to the last token, and rows of logits
        // have `keys`.
        unsafe {
            for t in tokens.clone() {
                let seen = task.visible(sequence, t).clamp(keys.start, keys.end);
                task.hide(sequence.token + t, seen..keys.end);
            }
            if keys.start >= end {
                return;
            }
            load::<L, F>(self, row, queries, weights);
            let [mut at, mut ahead, mut own] = [[core::ptr::null_mut(); BLOCK]; 3];
            for start in (keys.start..end).step_by(BLOCK) {
                let count = BLOCK.min(end - start);
                cache.addresses(0, start, count, &mut at);
                cache.ahead(0, 0..1, [start, end], &mut ahead);
                let (place, dims) = ([0, start, count], [task.dim, dim]);
                let rows = cache.load::<L>(&at, place, dims, F::PACKED, block, &mut own, &ahead);
                for t in tokens.clone() {
                    let seen = task.visible(sequence, t).saturating_sub(start).min(count);
                    if seen == 0 {
                        continue;
                    }
                    row.write_bytes(0, BLOCK);
                    let first = (t - tokens.start) * panels;
                    for panel in 0..panels {
                        let heads = F::rows::<L>().min(task.heads - panel * F::rows::<L>());
                        let panel = first + panel;
                        let query = queries.add(panel * F::query_len::<L>(dim));
                        form::score::<L, F>(query, &rows, dim, [count, heads], scores);
                        form::rectify::<L, F>(scores, weights.add(panel * width), [seen, heads], row);
                    }
                    for key in 0..seen {
                        let to = task.logits.at([sequence.token + t, start + key]);
                        to.cast::<f32>().write_unaligned(*row.add(key));
                    }
                }
            }
        }
    }
}

apart! {
    /// Reads queries and weights, 0 where there is no head.
    ///
    /// # Safety
    /// The promise of `index_logits`; there is room for both, and for one row.
    unsafe fn load<'a, L, F: Form>(
        piece: &'a Piece<'a>,
        row: *mut f32,
        queries: *mut f32,
        weights: *mut f32,
    ) {
        let Piece { task, sequence, tokens, .. } = piece;
        let (dim, width, rows) = (task.padded(), F::width::<L>(), F::rows::<L>());
        let panels = task.heads.div_ceil(rows);
        // SAFETY: the caller's promise.
        unsafe {
            queries.write_bytes(0, tokens.len() * panels * F::query_len::<L>(dim));
            weights.write_bytes(0, tokens.len() * panels * width);
            row.write_bytes(0, dim);
            for (place, t) in tokens.clone().enumerate() {
                let token = sequence.token + t;
                for head in 0..task.heads {
                    let from = task.q.at([token, head, 0]);
                    read_row::<L>(task.q.dtype(), from, task.q.inner(), task.dim, row);
                    let panel = place * panels + head / rows;
                    F::put_query::<L>(queries.add(panel * F::query_len::<L>(dim)), head % rows, row, dim);
                    let weight = task.weights.at([token, head]).cast::<f32>().read_unaligned();
                    *weights.add(panel * width + head % rows) = weight;
                }
            }
        }
    }
}
