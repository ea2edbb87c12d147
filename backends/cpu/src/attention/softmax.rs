//! Online softmax over lanes: weights of a block of keys, and the merge of two sets of keys.
//!
//! Scores are in units of log 2 (the query was scaled by log2 e), so weights are powers of two of their
//! distance to the running maximum. The order of every sum is fixed: keys one after another within a chunk,
//! chunks one after another.

use crate::simd::Lanes;

/// Maximum, sum of weights and weighted values of a panel over some of its keys.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// `[width]`, −∞ where no key was seen.
    pub(super) max: *mut f32,
    /// `[width]`.
    pub(super) sum: *mut f32,
    /// `[..][width]`.
    pub(super) result: *mut f32,
}

impl State {
    /// Floats of a state.
    pub(super) fn len(width: usize, result_len: usize) -> usize {
        2 * width + result_len
    }

    /// A state in the floats from `at`.
    ///
    /// # Safety
    /// There are [`State::len`] floats.
    pub(super) unsafe fn at(at: *mut f32, width: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { max: at, sum: at.add(width), result: at.add(2 * width) } }
    }

    /// No key yet.
    ///
    /// # Safety
    /// The pointers are writable for `width` and `result_len` floats.
    #[inline(always)]
    pub(super) unsafe fn clear<L: Lanes>(&self, width: usize, result_len: usize) {
        let (lowest, zero) = (L::splat(f32::NEG_INFINITY), L::zero());
        for lane in (0..width).step_by(L::LEN) {
            // SAFETY: width is a multiple of LEN.
            unsafe {
                lowest.store(self.max.add(lane));
                zero.store(self.sum.add(lane));
            }
        }
        for i in (0..result_len).step_by(L::LEN) {
            // SAFETY: result_len is a multiple of LEN.
            unsafe { zero.store(self.result.add(i)) };
        }
    }
}

/// `2^x` for x ≤ 0, within 2 ulp; 0 below the normal range, so that no product meets a denormal; NaN stays.
#[inline(always)]
pub(super) fn exp2_of_negative<L: Lanes>(x: L) -> L {
    let n = x.round();
    let r = x.sub(n);
    // (2^r − 1) / r of degree 5 on [−1/2, 1/2]: error 9e-9.
    let mut sum = L::splat(1.545_316_3e-4);
    for c in [1.339_086_3e-3, 9.618_083e-3, 5.550_357e-2, 2.402_265e-1, core::f32::consts::LN_2] {
        sum = sum.mul_add(r, L::splat(c));
    }
    let power = sum.mul_add(r, L::splat(1.0)).scale_by_power_of_two(n);
    L::select(x.lt(L::splat(-126.0)), L::zero(), power)
}

/// The maximum to subtract: 0 where no key was seen, so that −∞ minus it stays −∞.
#[inline(always)]
fn base<L: Lanes>(max: L) -> L {
    L::select(max.eq(L::splat(f32::NEG_INFINITY)), L::zero(), max)
}

/// Turns a block's scores into weights relative to the new maximum, in place; updates maximum and sum, and
/// gives the factor `2^(old − new)` for results of earlier blocks.
///
/// # Safety
/// `scores` is `[keys][width]`, `correction` `[width]`, width a multiple of the vector length.
#[inline(always)]
pub(super) unsafe fn weights<L: Lanes>(
    scores: *mut f32,
    keys: usize,
    width: usize,
    state: &State,
    correction: *mut f32,
) {
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
            let factor = exp2_of_negative(old.sub(base));
            let mut sum = L::load(state.sum.add(lane)).mul(factor);
            for key in 0..keys {
                let place = scores.add(key * width);
                let weight = exp2_of_negative(L::load(place).sub(base));
                weight.store(place);
                sum = sum.add(weight);
            }
            new.store(state.max.add(lane));
            sum.store(state.sum.add(lane));
            factor.store(correction.add(lane));
        }
    }
}

/// Adds the keys of `part` to those of `total`.
///
/// # Safety
/// Both states have `width` lanes and `result_len` results, multiples of the vector length.
#[inline(always)]
pub(super) unsafe fn merge<L: Lanes>(total: &State, part: &State, width: usize, result_len: usize) {
    for lane in (0..width).step_by(L::LEN) {
        // SAFETY: the caller's promise.
        unsafe {
            let (a, b) = (L::load(total.max.add(lane)), L::load(part.max.add(lane)));
            let new = a.max(b);
            let base = base(new);
            let (a, b) = (exp2_of_negative(a.sub(base)), exp2_of_negative(b.sub(base)));
            new.store(total.max.add(lane));
            let sum = L::load(part.sum.add(lane)).mul_add(b, L::load(total.sum.add(lane)).mul(a));
            sum.store(total.sum.add(lane));
            for i in (lane..result_len).step_by(width) {
                let sum = L::load(part.result.add(i)).mul_add(b, L::load(total.result.add(i)).mul(a));
                sum.store(total.result.add(i));
            }
        }
    }
}

/// Divides the results by their sums of weights; rows without a key stay 0.
///
/// # Safety
/// The state has `width` lanes and `result_len` results, multiples of the vector length.
#[inline(always)]
pub(super) unsafe fn normalize<L: Lanes>(state: &State, width: usize, result_len: usize) {
    for lane in (0..width).step_by(L::LEN) {
        // SAFETY: the caller's promise.
        unsafe {
            let sum = L::load(state.sum.add(lane));
            let inverse = L::select(sum.eq(L::zero()), L::zero(), L::splat(1.0).div(sum));
            for i in (lane..result_len).step_by(width) {
                L::load(state.result.add(i)).mul(inverse).store(state.result.add(i));
            }
        }
    }
}
