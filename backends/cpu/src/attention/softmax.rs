//! Online softmax: weights of a block of keys, and the merge of two sets of keys.
//!
//! Scores are in units of log 2 (the query was scaled by log2 e), so weights are powers of two of their
//! distance to the running maximum. The order of every sum is fixed: within a block [`CHAINS`] chains of keys, which
//! are then folded by halves; blocks one after another within a chunk, chunks one after another.

use super::form::{BLOCK, Form};
use crate::simd::{Lanes, apart};

/// Chains of the sum of a block's weights: chain c takes the keys c, c + CHAINS, …
pub(super) const CHAINS: usize = 16;

const _: () = assert!(BLOCK.is_multiple_of(CHAINS));

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
pub(super) fn base<L: Lanes>(max: L) -> L {
    L::select(max.eq(L::splat(f32::NEG_INFINITY)), L::zero(), max)
}

apart! {
    /// Makes a state one of no key.
    ///
    /// # Safety
    /// A state of a panel of this form for results of `dim` values.
    pub(super) unsafe fn clear<'a, L, F: Form>(state: &'a State, dim: usize) {
        let (lowest, zero) = (L::splat(f32::NEG_INFINITY), L::zero());
        for lane in (0..F::width::<L>()).step_by(L::LEN) {
            // SAFETY: the caller's promise; width is a multiple of LEN.
            unsafe {
                lowest.store(state.max.add(lane));
                zero.store(state.sum.add(lane));
            }
        }
        for i in (0..F::result_len::<L>(dim)).step_by(L::LEN) {
            // SAFETY: the caller's promise; the length is a multiple of LEN.
            unsafe { zero.store(state.result.add(i)) };
        }
    }

    /// Adds the keys of `part` to those of `total`.
    ///
    /// # Safety
    /// Both are states of panels of this form for results of `dim` values.
    pub(super) unsafe fn merge<'a, L, F: Form>(total: &'a State, part: &'a State, dim: usize) {
        const { assert!(L::LEN <= 16) };
        let width = F::width::<L>();
        debug_assert!(width <= MAX_WIDTH);
        let mut factors = [[0f32; MAX_WIDTH]; 2];
        let [kept, added] = factors.each_mut().map(|factors| factors.as_mut_ptr());
        // SAFETY: the caller's promise; width is a multiple of LEN.
        unsafe {
            for lane in (0..width).step_by(L::LEN) {
                let (a, b) = (L::load(total.max.add(lane)), L::load(part.max.add(lane)));
                let new = a.max(b);
                let base = base(new);
                let (a, b) = (exp2_of_negative(a.sub(base)), exp2_of_negative(b.sub(base)));
                new.store(total.max.add(lane));
                let sum = L::load(part.sum.add(lane)).mul_add(b, L::load(total.sum.add(lane)).mul(a));
                sum.store(total.sum.add(lane));
                a.store(kept.add(lane));
                b.store(added.add(lane));
            }
            for vector in 0..F::result_len::<L>(dim) / L::LEN {
                let (a, b) = (F::spread::<L>(kept, vector, dim), F::spread::<L>(added, vector, dim));
                let at = vector * L::LEN;
                let sum = L::load(part.result.add(at)).mul_add(b, L::load(total.result.add(at)).mul(a));
                sum.store(total.result.add(at));
            }
        }
    }

    /// Divides the results by their sums of weights; rows without a key stay 0.
    ///
    /// # Safety
    /// A state of a panel of this form for results of `dim` values.
    pub(super) unsafe fn normalize<'a, L, F: Form>(state: &'a State, dim: usize) {
        let width = F::width::<L>();
        debug_assert!(width <= MAX_WIDTH);
        let mut inverses = [0f32; MAX_WIDTH];
        // SAFETY: the caller's promise; width is a multiple of LEN.
        unsafe {
            for lane in (0..width).step_by(L::LEN) {
                let sum = L::load(state.sum.add(lane));
                let inverse = L::select(sum.eq(L::zero()), L::zero(), L::splat(1.0).div(sum));
                inverse.store(inverses.as_mut_ptr().add(lane));
            }
            for vector in 0..F::result_len::<L>(dim) / L::LEN {
                let inverse = F::spread::<L>(inverses.as_ptr(), vector, dim);
                let place = state.result.add(vector * L::LEN);
                L::load(place).mul(inverse).store(place);
            }
        }
    }
}

/// Rows of the widest form.
const MAX_WIDTH: usize = 64;
