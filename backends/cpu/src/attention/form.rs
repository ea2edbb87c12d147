//! How query rows are laid over lanes: what the two shapes of query block have in common.
//!
//! A panel is a set of rows that are worked on together. `tile` gives each row a lane; `few`, for the few rows of
//! decode, gives the lanes to keys and to value columns. Whatever the shape, a score is the sum of four chains
//! `c_r = Σ_i q[4i + r]·k[4i + r]`, added as `(c0 + c1) + (c2 + c3)`, a block's weights are summed as `softmax` says,
//! and a result is one chain over keys: that is why the shapes give the same bits.

use super::block::Rows;
use super::softmax::State;
use crate::simd::{Lanes, apart};

/// Keys of one block: a multiple of the number of keys every microkernel takes (1 to 6, 8, 12, 16). A block
/// of keys and of values of 128 elements take 24 KiB each, and 48 × 64 scores 12 KiB: scores and values
/// together stay in a first-level cache of 48 KiB.
pub(super) const BLOCK: usize = 48;

/// A shape of query block. Its functions are inlined where they are used; those over a block are used through the
/// functions of the same names below, which are compiled apart.
pub(super) trait Form: 'static {
    /// Whether blocks have to be f32, row after row without gaps; else they are read where they lie.
    const PACKED: bool;

    /// Numbers of which a panel has one for each row, in this order: a multiple of the vector length.
    fn width<L: Lanes>() -> usize;

    /// Rows of a panel.
    fn rows<L: Lanes>() -> usize;

    /// Where the scores of a row begin, and how far apart those of its keys lie.
    fn scores_of<L: Lanes>(row: usize) -> [usize; 2];

    /// Floats of the scores of the first `keys` of a block.
    fn scores_len<L: Lanes>(keys: usize) -> usize;

    /// Floats of a panel's queries, `dim` a multiple of 4.
    fn query_len<L: Lanes>(dim: usize) -> usize;

    /// Floats of a panel's results, `dim` a multiple of 4: a multiple of the vector length.
    fn result_len<L: Lanes>(dim: usize) -> usize;

    /// Puts a row's query in its place.
    ///
    /// # Safety
    /// `from` has `dim` values (a multiple of 4), `panel` is a panel's queries, `row` is below `rows()`.
    unsafe fn put_query<L: Lanes>(panel: *mut f32, row: usize, from: *const f32, dim: usize);

    /// Takes a row's result from its place.
    ///
    /// # Safety
    /// `to` has room for `dim` values (a multiple of 4), `panel` is a panel's results, `row` is below `rows()`.
    unsafe fn take_result<L: Lanes>(panel: *const f32, row: usize, to: *mut f32, dim: usize);

    /// Puts a row's result in its place.
    ///
    /// # Safety
    /// As [`Form::take_result`], `from` has `dim` values.
    unsafe fn put_result<L: Lanes>(panel: *mut f32, row: usize, from: *const f32, dim: usize);

    /// The numbers of the rows, each where vector `vector` of a panel's results has elements of that row.
    ///
    /// # Safety
    /// `rows` is `[width]`, and the results for `dim` values have that vector.
    unsafe fn spread<L: Lanes>(rows: *const f32, vector: usize, dim: usize) -> L;

    /// Scores of the first `keys` of a block for the first `rows` rows; `counts` is `[keys, rows]` here and below. May write more of the block.
    ///
    /// # Safety
    /// `query` is a panel's, rows of `block` have `dim` values and are packed if asked to be, `scores` has room
    /// for BLOCK × width.
    unsafe fn score<L: Lanes>(
        query: *const f32,
        block: &Rows,
        dim: usize,
        counts: [usize; 2],
        scores: *mut f32,
    );

    /// Sets the scores of the first `keys` of a block to −∞ below a row's lower bound and from its upper bound on.
    ///
    /// # Safety
    /// `scores` is a block's, `bounds` `[2][width]`, whole numbers up to `keys`.
    unsafe fn hide<L: Lanes>(scores: *mut f32, bounds: *const f32, counts: [usize; 2]);

    /// `s −= slope · |ahead − key|` for the first `keys` of a block; `lines` holds the slopes and, behind them, how far
    /// each row is ahead of the block's first key.
    ///
    /// # Safety
    /// `scores` is a block's, `lines` `[2][width]`.
    unsafe fn slope<L: Lanes>(scores: *mut f32, lines: *const f32, counts: [usize; 2]);

    /// Adds to the sum of each of the first `keys` its rectified scores, each times its row's weight.
    ///
    /// # Safety
    /// `scores` is a block's, `weights` `[width]` and 0 from `rows` on, `sums` `[BLOCK]`.
    unsafe fn rectify<L: Lanes>(scores: *const f32, weights: *const f32, counts: [usize; 2], sums: *mut f32);

    /// Turns a block's scores into weights relative to the new maximum, in place; updates maximum and sum, and
    /// gives the factor `2^(old − new)` for results of earlier blocks.
    ///
    /// # Safety
    /// `scores` is a block's, `correction` `[width]`.
    unsafe fn weights<L: Lanes>(scores: *mut f32, counts: [usize; 2], state: &State, correction: *mut f32);

    /// `result = result · correction + Σ_key weights[key] · block[key]`, key after key, for the first `rows` rows.
    ///
    /// # Safety
    /// `weights` is a block's, `correction` `[width]`, rows of `block` have `dim` values and are packed if
    /// asked to be, `result` is a panel's.
    unsafe fn weigh<L: Lanes>(
        weights: *const f32,
        correction: *const f32,
        block: &Rows,
        dim: usize,
        counts: [usize; 2],
        result: *mut f32,
    );
}

apart! {
    /// [`Form::score`].
    ///
    /// # Safety
    /// Its own.
    pub(super) unsafe fn score<'a, L, F: Form>(
        query: *const f32,
        block: &'a Rows<'a>,
        dim: usize,
        counts: [usize; 2],
        scores: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { F::score::<L>(query, block, dim, counts, scores) }
    }

    /// [`Form::hide`].
    ///
    /// # Safety
    /// Its own.
    pub(super) unsafe fn hide<L, F: Form>(scores: *mut f32, bounds: *const f32, counts: [usize; 2]) {
        // SAFETY: the caller's promise.
        unsafe { F::hide::<L>(scores, bounds, counts) }
    }

    /// [`Form::slope`].
    ///
    /// # Safety
    /// Its own.
    pub(super) unsafe fn slope<L, F: Form>(scores: *mut f32, lines: *const f32, counts: [usize; 2]) {
        // SAFETY: the caller's promise.
        unsafe { F::slope::<L>(scores, lines, counts) }
    }

    /// [`Form::rectify`].
    ///
    /// # Safety
    /// Its own.
    pub(super) unsafe fn rectify<L, F: Form>(
        scores: *const f32,
        weights: *const f32,
        counts: [usize; 2],
        sums: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { F::rectify::<L>(scores, weights, counts, sums) }
    }

    /// [`Form::weights`].
    ///
    /// # Safety
    /// Its own.
    pub(super) unsafe fn weights<'a, L, F: Form>(
        scores: *mut f32,
        counts: [usize; 2],
        state: &'a State,
        correction: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { F::weights::<L>(scores, counts, state, correction) }
    }

    /// [`Form::weigh`].
    ///
    /// # Safety
    /// Its own.
    pub(super) unsafe fn weigh<'a, L, F: Form>(
        weights: *const f32,
        correction: *const f32,
        block: &'a Rows<'a>,
        dim: usize,
        counts: [usize; 2],
        result: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe { F::weigh::<L>(weights, correction, block, dim, counts, result) }
    }
}
