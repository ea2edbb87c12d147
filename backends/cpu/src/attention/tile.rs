//! The query block of prefill: one lane per row, keys and values broadcast.
//!
//! Lanes run along rows, so keys and values are used as they lie (no transposition), and softmax needs no
//! sums across lanes. `NV` vectors of rows times `NK` keys (or value columns) are accumulated in registers.

use super::block::Rows;
use super::form::{BLOCK, Form};
use super::softmax::{CHAINS, State, base, exp2_of_negative};
use crate::simd::Lanes;

/// `NV` vectors of rows against `NK` keys at a time. On AVX-512, 4 × 6 takes 24 accumulators, 4 vectors of
/// queries and 1 broadcast key out of 32 registers; a step of 24 products needs 10 loads.
pub(super) struct Tile<const NV: usize, const NK: usize>;

impl<const NV: usize, const NK: usize> Form for Tile<NV, NK> {
    const PACKED: bool = true;

    fn width<L: Lanes>() -> usize {
        NV * L::LEN
    }

    fn rows<L: Lanes>() -> usize {
        NV * L::LEN
    }

    fn scores_of<L: Lanes>(row: usize) -> [usize; 2] {
        [row, NV * L::LEN]
    }

    fn scores_len<L: Lanes>(keys: usize) -> usize {
        keys * NV * L::LEN
    }

    fn query_len<L: Lanes>(dim: usize) -> usize {
        dim * NV * L::LEN
    }

    fn result_len<L: Lanes>(dim: usize) -> usize {
        dim * NV * L::LEN
    }

    /// Elements are stored in the order of the four chains: `[r][i][row]` holds element `4i + r`.
    #[inline(always)]
    unsafe fn put_query<L: Lanes>(panel: *mut f32, row: usize, from: *const f32, dim: usize) {
        let width = NV * L::LEN;
        for i in 0..dim {
            let place = (i % 4 * (dim / 4) + i / 4) * width + row;
            // SAFETY: place < dim · width.
            unsafe { *panel.add(place) = *from.add(i) };
        }
    }

    #[inline(always)]
    unsafe fn take_result<L: Lanes>(panel: *const f32, row: usize, to: *mut f32, dim: usize) {
        for i in 0..dim {
            // SAFETY: the place is below dim · width.
            unsafe { *to.add(i) = *panel.add(i * NV * L::LEN + row) };
        }
    }

    #[inline(always)]
    unsafe fn put_result<L: Lanes>(panel: *mut f32, row: usize, from: *const f32, dim: usize) {
        for i in 0..dim {
            // SAFETY: the place is below dim · width.
            unsafe { *panel.add(i * NV * L::LEN + row) = *from.add(i) };
        }
    }

    #[inline(always)]
    unsafe fn spread<L: Lanes>(rows: *const f32, vector: usize, _dim: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(rows.add(vector % NV * L::LEN)) }
    }

    #[inline(always)]
    unsafe fn score<L: Lanes>(
        query: *const f32,
        block: &Rows,
        dim: usize,
        [keys, _]: [usize; 2],
        scores: *mut f32,
    ) {
        const { assert!(BLOCK.is_multiple_of(NK)) };
        let block = block.at[0].cast::<f32>().cast_const();
        let mut key = 0;
        while key < keys {
            // SAFETY: NK divides BLOCK, so key + NK ≤ BLOCK rows exist on both sides.
            unsafe {
                score_keys::<L, NV, NK>(query, block.add(key * dim), dim, scores.add(key * NV * L::LEN));
            }
            key += NK;
        }
    }

    #[inline(always)]
    unsafe fn hide<L: Lanes>(scores: *mut f32, bounds: *const f32, [keys, _]: [usize; 2]) {
        let (width, hidden) = (NV * L::LEN, L::splat(f32::NEG_INFINITY));
        for lane in (0..width).step_by(L::LEN) {
            // SAFETY: the caller's promise.
            unsafe {
                let (low, high) = (L::load(bounds.add(lane)), L::load(bounds.add(width + lane)));
                for key in 0..keys {
                    let place = scores.add(key * width + lane);
                    let key = L::splat(key as f32);
                    let score = L::select(low.le(key), L::load(place), hidden);
                    L::select(key.lt(high), score, hidden).store(place);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn slope<L: Lanes>(scores: *mut f32, lines: *const f32, [keys, _]: [usize; 2]) {
        let width = NV * L::LEN;
        for lane in (0..width).step_by(L::LEN) {
            // SAFETY: the caller's promise.
            unsafe {
                let (slope, ahead) = (L::load(lines.add(lane)), L::load(lines.add(width + lane)));
                for key in 0..keys {
                    let place = scores.add(key * width + lane);
                    let distance = ahead.sub(L::splat(key as f32)).abs();
                    slope.neg_mul_add(distance, L::load(place)).store(place);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn rectify<L: Lanes>(
        scores: *const f32,
        weights: *const f32,
        [keys, _]: [usize; 2],
        sums: *mut f32,
    ) {
        let width = NV * L::LEN;
        for key in 0..keys {
            let mut sum = L::zero();
            for lane in (0..width).step_by(L::LEN) {
                // SAFETY: the caller's promise.
                let (score, weight) =
                    unsafe { (L::load(scores.add(key * width + lane)), L::load(weights.add(lane))) };
                sum = score.max(L::zero()).mul_add(weight, sum);
            }
            // SAFETY: the caller's promise.
            unsafe { *sums.add(key) += sum.sum() };
        }
    }

    #[inline(always)]
    unsafe fn weights<L: Lanes>(
        scores: *mut f32,
        [keys, _]: [usize; 2],
        state: &State,
        correction: *mut f32,
    ) {
        let width = NV * L::LEN;
        for lane in (0..width).step_by(L::LEN) {
            // SAFETY: the caller's promise.
            unsafe {
                let scores = scores.add(lane);
                let old = L::load(state.max.add(lane));
                // Four maxima at a time: a maximum is the same in any order, and one chain would wait for itself.
                let mut tops = [old; 4];
                let mut key = 0;
                while key + 4 <= keys {
                    for (i, top) in tops.iter_mut().enumerate() {
                        *top = top.max(L::load(scores.add((key + i) * width)));
                    }
                    key += 4;
                }
                while key < keys {
                    tops[0] = tops[0].max(L::load(scores.add(key * width)));
                    key += 1;
                }
                let new = tops[0].max(tops[1]).max(tops[2].max(tops[3]));
                let base = base(new);
                for key in 0..keys {
                    let place = scores.add(key * width);
                    exp2_of_negative(L::load(place).sub(base)).store(place);
                }
                let factor = exp2_of_negative(old.sub(base));
                let sum = L::load(state.sum.add(lane)).mul(factor).add(sum_of_weights(scores, keys, width));
                new.store(state.max.add(lane));
                sum.store(state.sum.add(lane));
                factor.store(correction.add(lane));
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<L: Lanes>(
        weights: *const f32,
        correction: *const f32,
        block: &Rows,
        dim: usize,
        [keys, _]: [usize; 2],
        result: *mut f32,
    ) {
        let (block, step) = (block.at[0].cast::<f32>().cast_const(), block.step);
        let mut column = 0;
        // SAFETY: every call takes columns below dim.
        unsafe {
            while column + NK <= dim {
                weigh_columns::<L, NV, NK>(weights, correction, block, step, keys, column, result);
                column += NK;
            }
            while column + 2 <= dim {
                weigh_columns::<L, NV, 2>(weights, correction, block, step, keys, column, result);
                column += 2;
            }
        }
    }
}

/// The sum of one vector of weights of each of `keys` keys, in the order that `softmax` says.
#[inline(always)]
unsafe fn sum_of_weights<L: Lanes>(weights: *const f32, keys: usize, width: usize) -> L {
    let mut sums = [L::zero(); CHAINS];
    for (chain, sum) in sums.iter_mut().enumerate() {
        for key in (chain..keys).step_by(CHAINS) {
            // SAFETY: the caller has `keys` vectors.
            *sum = sum.add(unsafe { L::load(weights.add(key * width)) });
        }
    }
    let mut len = CHAINS;
    while len > 1 {
        len /= 2;
        for i in 0..len {
            sums[i] = sums[i].add(sums[i + len]);
        }
    }
    sums[0]
}

/// Scores of `NK` keys, chain after chain; the accumulators of one chain fill the registers.
#[inline(always)]
unsafe fn score_keys<L: Lanes, const NV: usize, const NK: usize>(
    query: *const f32,
    keys: *const f32,
    dim: usize,
    scores: *mut f32,
) {
    let mut third = [[L::zero(); NV]; NK];
    for chain in 0..4 {
        let mut sums = [[L::zero(); NV]; NK];
        // SAFETY: chain · dim/4 + i < dim vectors of queries, and 4i + chain < dim elements of NK keys.
        unsafe {
            let mut q_at = query.add(chain * (dim / 4) * NV * L::LEN);
            let mut k_at = keys.add(chain);
            for _ in 0..dim / 4 {
                let mut q = [L::zero(); NV];
                for (v, q) in q.iter_mut().enumerate() {
                    *q = L::load(q_at.add(v * L::LEN));
                }
                for (key, sums) in sums.iter_mut().enumerate() {
                    let k = L::splat(*k_at.add(key * dim));
                    for v in 0..NV {
                        sums[v] = k.mul_add(q[v], sums[v]);
                    }
                }
                q_at = q_at.add(NV * L::LEN);
                k_at = k_at.add(4);
            }
            for key in 0..NK {
                for v in 0..NV {
                    let place = scores.add((key * NV + v) * L::LEN);
                    let sum = sums[key][v];
                    match chain {
                        0 => sum.store(place),
                        1 => L::load(place).add(sum).store(place),
                        2 => third[key][v] = sum,
                        _ => L::load(place).add(third[key][v].add(sum)).store(place),
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn weigh_columns<L: Lanes, const NV: usize, const NC: usize>(
    weights: *const f32,
    correction: *const f32,
    block: *const f32,
    step: usize,
    keys: usize,
    column: usize,
    result: *mut f32,
) {
    // SAFETY: column + NC columns of keys rows of weights and values exist.
    unsafe {
        let result = result.add(column * NV * L::LEN);
        let mut sums = [[L::zero(); NV]; NC];
        for (c, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(result.add((c * NV + v) * L::LEN)).mul(L::load(correction.add(v * L::LEN)));
            }
        }
        let mut p_at = weights;
        let mut v_at = block.add(column);
        for _ in 0..keys {
            let mut p = [L::zero(); NV];
            for (v, p) in p.iter_mut().enumerate() {
                *p = L::load(p_at.add(v * L::LEN));
            }
            for (c, sums) in sums.iter_mut().enumerate() {
                let value = L::splat(*v_at.add(c));
                for v in 0..NV {
                    sums[v] = value.mul_add(p[v], sums[v]);
                }
            }
            p_at = p_at.add(NV * L::LEN);
            v_at = v_at.add(step);
        }
        for (c, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(result.add((c * NV + v) * L::LEN));
            }
        }
    }
}
