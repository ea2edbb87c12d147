//! How query rows are laid over lanes: what the two shapes of query block have in common.
//!
//! A panel is a set of rows that are worked on together. `tile` gives each row one lane; `quad` gives it
//! four neighbouring ones, each for a quarter of the elements. Whatever the shape, a score is the sum of four
//! chains `c_r = Σ_i q[4i + r]·k[4i + r]`, added as `(c0 + c1) + (c2 + c3)`, and a result is one chain over
//! keys: that is why the shapes give the same bits.

use super::block::Rows;
use crate::simd::Lanes;

/// Keys of one block: a multiple of the number of keys every microkernel takes (1 to 6, 8, 12, 16). A block
/// of keys and of values of 128 elements take 24 KiB each, and 48 × 64 scores 12 KiB: scores and values
/// together stay in a first-level cache of 48 KiB.
pub(super) const BLOCK: usize = 48;

/// A shape of query block.
pub(super) trait Form: 'static {
    /// Whether blocks have to be f32, row after row without gaps; else they are read where they lie.
    const PACKED: bool;

    /// Lanes of a panel: a multiple of the vector length.
    fn width<L: Lanes>() -> usize;

    /// Rows of a panel.
    fn rows<L: Lanes>() -> usize;

    /// Lanes of one row, which follow one another: row r has lanes from `r · lanes()`.
    fn lanes() -> usize;

    /// Floats of a panel's queries, `dim` a multiple of 4.
    fn query_len<L: Lanes>(dim: usize) -> usize;

    /// Floats of a panel's results, `dim` a multiple of 4.
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

    /// Scores of the first `keys` of a block: `scores[key][lane]`. May write more of the block.
    ///
    /// # Safety
    /// `query` is a panel's, rows of `block` have `dim` values and are packed if asked to be, `scores` has room
    /// for BLOCK × width.
    unsafe fn score<L: Lanes>(query: *const f32, block: &Rows, dim: usize, keys: usize, scores: *mut f32);

    /// `result = result · correction + Σ_key weights[key] · block[key]`, key after key.
    ///
    /// # Safety
    /// `weights` is `[keys][width]`, `correction` `[width]`, rows of `block` have `dim` values and are packed if
    /// asked to be, `result` is a panel's.
    unsafe fn weigh<L: Lanes>(
        weights: *const f32,
        correction: *const f32,
        block: &Rows,
        dim: usize,
        keys: usize,
        result: *mut f32,
    );
}
