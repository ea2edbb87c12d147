//! The query block of decode: few rows, such as a GQA group of one token.
//!
//! A lane per row would leave most lanes idle, so lanes run along keys for scores and along columns for results.
//! Every line of the cache is then read once and whole, and everything that differs from row to row is a number that a
//! product repeats from memory by itself. Keys are turned, so that a vector has one element of as many keys.

use super::block::{LINE, Rows, prefetch};
use super::form::{BLOCK, Form};
use super::softmax::{CHAINS, State, base, exp2_of_negative};
use super::turned::Turned;
use crate::simd::{Kernel, Lanes, Stored};
use core::marker::PhantomData;
use half::{bf16, f16};
use portolan_ops::DType;

/// Vectors of value columns accumulated together.
const COLUMNS: usize = 4;

/// Calls a function for rows of this type and as many as there are, in code of its own: the kernels that use a form
/// have many branches, and all of them in one function would take a compiler minutes.
macro_rules! for_rows {
    ($L:ty, $block:expr, $rows:expr, $kernel:ident { $($field:ident),+ }) => {
        match ($block.dtype, $rows) {
            (DType::F16, 1) => <$L>::apart($kernel::<f16, 1> { $($field,)+ of: PhantomData }),
            (DType::BF16, 1) => <$L>::apart($kernel::<bf16, 1> { $($field,)+ of: PhantomData }),
            (_, 1) => <$L>::apart($kernel::<f32, 1> { $($field,)+ of: PhantomData }),
            (DType::F16, _) => <$L>::apart($kernel::<f16, 4> { $($field,)+ of: PhantomData }),
            (DType::BF16, _) => <$L>::apart($kernel::<bf16, 4> { $($field,)+ of: PhantomData }),
            (_, _) => <$L>::apart($kernel::<f32, 4> { $($field,)+ of: PhantomData }),
        }
    };
}

/// Few rows.
pub(super) struct Few;

impl Form for Few {
    const PACKED: bool = false;

    fn width<L: Lanes>() -> usize {
        L::LEN
    }

    fn rows<L: Lanes>() -> usize {
        L::LEN / 4
    }

    fn scores_of<L: Lanes>(row: usize) -> [usize; 2] {
        [row * BLOCK, 1]
    }

    fn scores_len<L: Lanes>(_keys: usize) -> usize {
        Self::rows::<L>() * BLOCK
    }

    fn query_len<L: Lanes>(dim: usize) -> usize {
        Self::rows::<L>() * dim
    }

    fn result_len<L: Lanes>(dim: usize) -> usize {
        Self::rows::<L>() * dim.next_multiple_of(L::LEN)
    }

    #[inline(always)]
    unsafe fn put_query<L: Lanes>(panel: *mut f32, row: usize, from: *const f32, dim: usize) {
        // SAFETY: the caller's promise.
        unsafe { panel.add(row * dim).copy_from_nonoverlapping(from, dim) };
    }

    #[inline(always)]
    unsafe fn take_result<L: Lanes>(panel: *const f32, row: usize, to: *mut f32, dim: usize) {
        // SAFETY: the caller's promise.
        unsafe { to.copy_from_nonoverlapping(panel.add(row * dim.next_multiple_of(L::LEN)), dim) };
    }

    #[inline(always)]
    unsafe fn put_result<L: Lanes>(panel: *mut f32, row: usize, from: *const f32, dim: usize) {
        // SAFETY: the caller's promise.
        unsafe { panel.add(row * dim.next_multiple_of(L::LEN)).copy_from_nonoverlapping(from, dim) };
    }

    #[inline(always)]
    unsafe fn spread<L: Lanes>(rows: *const f32, vector: usize, dim: usize) -> L {
        // SAFETY: the caller's promise.
        L::splat(unsafe { *rows.add(vector / dim.div_ceil(L::LEN)) })
    }

    #[inline(always)]
    unsafe fn score<L: Lanes>(
        query: *const f32,
        block: &Rows,
        dim: usize,
        [keys, rows]: [usize; 2],
        scores: *mut f32,
    ) {
        for_rows!(L, block, rows, Score { query, block, dim, keys, scores });
    }

    #[inline(always)]
    unsafe fn hide<L: Lanes>(scores: *mut f32, bounds: *const f32, [keys, rows]: [usize; 2]) {
        for row in 0..rows {
            // SAFETY: the caller's promise.
            unsafe {
                let [low, high] = [*bounds.add(row), *bounds.add(L::LEN + row)].map(|bound| bound as usize);
                let scores = core::slice::from_raw_parts_mut(scores.add(row * BLOCK), keys);
                scores[..low.min(keys)].fill(f32::NEG_INFINITY);
                scores[high.min(keys)..].fill(f32::NEG_INFINITY);
            }
        }
    }

    #[inline(always)]
    unsafe fn slope<L: Lanes>(scores: *mut f32, lines: *const f32, [keys, rows]: [usize; 2]) {
        for row in 0..rows {
            // SAFETY: the caller's promise; BLOCK is a multiple of LEN.
            unsafe {
                let (slope, ahead) = (L::splat(*lines.add(row)), L::splat(*lines.add(L::LEN + row)));
                for key in (0..keys).step_by(L::LEN) {
                    let place = scores.add(row * BLOCK + key);
                    let keys = L::splat(key as f32).add(L::from_array(&LANE));
                    slope.neg_mul_add(ahead.sub(keys).abs(), L::load(place)).store(place);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rectify<L: Lanes>(
        scores: *const f32,
        weights: *const f32,
        [keys, rows]: [usize; 2],
        sums: *mut f32,
    ) {
        for row in 0..rows {
            // SAFETY: the caller's promise; BLOCK is a multiple of LEN.
            unsafe {
                let weight = L::splat(*weights.add(row));
                for key in (0..keys).step_by(L::LEN) {
                    let score = L::load(scores.add(row * BLOCK + key)).max(L::zero());
                    score.mul_add(weight, L::load(sums.add(key))).store(sums.add(key));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn weights<L: Lanes>(
        scores: *mut f32,
        [keys, rows]: [usize; 2],
        state: &State,
        correction: *mut f32,
    ) {
        const { assert!(CHAINS == L::LEN || CHAINS == 2 * L::LEN) };
        for row in 0..rows {
            // SAFETY: the caller's promise; BLOCK is a multiple of LEN.
            unsafe {
                let scores = scores.add(row * BLOCK);
                let whole = keys.next_multiple_of(CHAINS);
                core::slice::from_raw_parts_mut(scores, whole)[keys..].fill(f32::NEG_INFINITY);
                let old = *state.max.add(row);
                let mut top = L::splat(old);
                for key in (0..whole).step_by(L::LEN) {
                    top = top.max(L::load(scores.add(key)));
                }
                let new = L::splat(top.largest());
                let base = base(new);
                let mut sums = [L::zero(); 2];
                for key in (0..whole).step_by(L::LEN) {
                    let weight = exp2_of_negative(L::load(scores.add(key)).sub(base));
                    weight.store(scores.add(key));
                    let chains = &mut sums[key % CHAINS / L::LEN % 2];
                    *chains = chains.add(weight);
                }
                // Of vectors of 16, there is one.
                let sum = if L::LEN == CHAINS { sums[0] } else { sums[0].add(sums[1]) };
                let factor = exp2_of_negative(L::splat(old).sub(base)).to_array()[0];
                *correction.add(row) = factor;
                *state.sum.add(row) = *state.sum.add(row) * factor + sum.sum();
                *state.max.add(row) = new.to_array()[0];
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<L: Lanes>(
        weights: *const f32,
        correction: *const f32,
        block: &Rows,
        dim: usize,
        [keys, rows]: [usize; 2],
        result: *mut f32,
    ) {
        let at = [weights, correction];
        for_rows!(L, block, rows, Weigh { at, block, dim, keys, result });
    }
}

/// The number of each lane.
const LANE: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];

/// As [`Form::score`], for rows of this type; `R` is 1, or as many rows as a panel has.
struct Score<'a, T, const R: usize> {
    query: *const f32,
    block: &'a Rows<'a>,
    dim: usize,
    keys: usize,
    scores: *mut f32,
    of: PhantomData<T>,
}

impl<T: Turned, const R: usize> Kernel for Score<'_, T, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { query, block, dim, keys, scores, .. } = self;
        // SAFETY: the promise of `Form::score`.
        unsafe {
            match (R, L::LEN) {
                (1, _) => T::score::<L, 1>(query, block, dim, keys, scores),
                (_, 8) => T::score::<L, 2>(query, block, dim, keys, scores),
                _ => T::score::<L, 4>(query, block, dim, keys, scores),
            }
        }
    }
}

/// As [`Form::weigh`], for rows of this type; `R` as in [`Score`].
struct Weigh<'a, T, const R: usize> {
    at: [*const f32; 2],
    block: &'a Rows<'a>,
    dim: usize,
    keys: usize,
    result: *mut f32,
    of: PhantomData<T>,
}

impl<T: Stored, const R: usize> Kernel for Weigh<'_, T, R> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { at, block, dim, keys, result, .. } = self;
        // SAFETY: the promise of `Form::weigh`.
        unsafe {
            match (R, L::LEN) {
                (1, _) => weigh_rows::<L, T, 1>(at, block, dim, keys, result),
                (_, 8) => weigh_rows::<L, T, 2>(at, block, dim, keys, result),
                _ => weigh_rows::<L, T, 4>(at, block, dim, keys, result),
            }
        }
    }
}

/// As [`Form::weigh`] for `R` rows of this type.
#[inline(always)]
unsafe fn weigh_rows<L: Lanes, T: Stored, const R: usize>(
    at: [*const f32; 2],
    block: &Rows,
    dim: usize,
    keys: usize,
    result: *mut f32,
) {
    let apart = dim.next_multiple_of(L::LEN);
    let mut column = 0;
    // SAFETY: every call takes columns below dim.
    unsafe {
        while column + COLUMNS * L::LEN <= dim {
            weigh_columns::<L, T, R, COLUMNS>(at, block, keys, [column, apart], L::LEN, result);
            column += COLUMNS * L::LEN;
        }
        while column < dim {
            let last = L::LEN.min(dim - column);
            weigh_columns::<L, T, R, 1>(at, block, keys, [column, apart], last, result);
            column += L::LEN;
        }
    }
}

/// `C` vectors of columns of the results of `R` rows, which lie `apart`; the last vector has `last` columns.
#[inline(always)]
unsafe fn weigh_columns<L: Lanes, T: Stored, const R: usize, const C: usize>(
    [weights, correction]: [*const f32; 2],
    block: &Rows,
    keys: usize,
    [column, apart]: [usize; 2],
    last: usize,
    result: *mut f32,
) {
    // SAFETY: the caller's promise: these columns exist, and keys rows of weights and values.
    unsafe {
        let mut sums = [[L::zero(); C]; R];
        for (row, sums) in sums.iter_mut().enumerate() {
            let correction = L::splat(*correction.add(row));
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(result.add(row * apart + column + i * L::LEN)).mul(correction);
            }
        }
        for (key, (values, ahead)) in block.at[..keys].iter().zip(block.ahead).enumerate() {
            let values = values.cast::<T>().cast_const().add(column);
            let ahead = ahead.wrapping_add(column * size_of::<T>());
            for at in (0..C * L::LEN * size_of::<T>()).step_by(LINE) {
                prefetch(ahead.wrapping_add(at));
            }
            let mut v = [L::zero(); C];
            for (i, v) in v.iter_mut().enumerate() {
                let values = values.add(i * L::LEN);
                *v = if C > 1 || last == L::LEN { T::load(values) } else { T::load_partial(values, last) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let weight = L::splat(*weights.add(row * BLOCK + key));
                for (v, sum) in v.iter().zip(sums) {
                    *sum = v.mul_add(weight, *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (i, sum) in sums.iter().enumerate() {
                sum.store(result.add(row * apart + column + i * L::LEN));
            }
        }
    }
}
