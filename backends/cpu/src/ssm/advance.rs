//! One token's step of a state: rows of numbers decay, take up an input, and are summed up against factors.
//!
//! Lanes run along a row, because states lie in memory by row and a row's decay and input are one number each;
//! the sums of a vector's worth of rows are folded together.

use super::view::Rows;
use crate::simd::{Lanes, math};

/// How much of each number of a state is left.
pub(super) trait Decay: Copy {
    /// Of numbers `k..` of row `row`; inlined, as all that takes lanes.
    ///
    /// # Safety
    /// There are such numbers.
    unsafe fn of<L: Lanes>(self, row: usize, k: usize) -> L;
}

/// `e^(step[row] · rate[row, k])`.
#[derive(Clone, Copy)]
pub(super) struct Exponential {
    pub(super) step: *const f32,
    pub(super) rates: Rows,
}

impl Decay for Exponential {
    #[inline(always)]
    unsafe fn of<L: Lanes>(self, row: usize, k: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe { math::exp(L::splat(*self.step.add(row)).mul(L::load(self.rates.at(row, k)))) }
    }
}

/// The same for all.
#[derive(Clone, Copy)]
pub(super) struct Uniform(pub(super) f32);

impl Decay for Uniform {
    #[inline(always)]
    unsafe fn of<L: Lanes>(self, _: usize, _: usize) -> L {
        L::splat(self.0)
    }
}

/// What is added to a state, and what it is summed up against: `input[row] · b[k]` and `c[k]`.
#[derive(Clone, Copy)]
pub(super) struct Factors {
    pub(super) input: *const f32,
    pub(super) b: *const f32,
    pub(super) c: *const f32,
    /// Numbers in a row.
    pub(super) n: usize,
}

/// `to = decay · from + input · b` and `y[row] = Σ_k c[k] · to[row, k]`, over `count` rows; from may be to.
///
/// # Safety
/// Rows of from, to and rates, and b and c, are readable (to writable) up to a multiple of 16 numbers, or n if that
/// is whole vectors; input has `count` numbers, y room for `count` rounded up to a multiple of 16.
#[inline(always)]
pub(super) unsafe fn advance<L: Lanes, D: Decay>(
    decay: D,
    factors: Factors,
    [from, to]: [Rows; 2],
    count: usize,
    y: *mut f32,
) {
    let Factors { input, b, c, n } = factors;
    let lane = L::from_array(&core::array::from_fn(|i| i as f32));
    let mut first = 0;
    while first < count {
        let rows = L::LEN.min(count - first);
        let mut sums = [L::zero(); 16];
        let mut k = 0;
        while k < n {
            // Behind the row's end a decay may be 0 · ∞: what lies there stays 0.
            let inside = lane.lt(L::splat((n - k).min(L::LEN) as f32));
            // SAFETY: k is below n; vectors reach no further than the caller promised.
            unsafe {
                let (b, c) = (L::load(b.add(k)), L::load(c.add(k)));
                for (i, sum) in sums.iter_mut().enumerate().take(rows) {
                    let row = first + i;
                    let kept = decay.of::<L>(row, k).mul(L::load(from.at(row, k)));
                    let mut h = L::splat(*input.add(row)).mul_add(b, kept);
                    if n - k < L::LEN {
                        h = L::select(inside, h, L::zero());
                    }
                    h.store(to.at(row, k));
                    *sum = c.mul_add(h, *sum);
                }
            }
            k += L::LEN;
        }
        // SAFETY: room up to a multiple of 16.
        unsafe { sum_each(sums).store(y.add(first)) };
        first += L::LEN;
    }
}

/// The sum of each of the first LEN vectors, in the lane of its place: neighbours first, always in this order.
#[inline(always)]
fn sum_each<L: Lanes>(mut vectors: [L; 16]) -> L {
    let mut count = L::LEN;
    while count > 1 {
        count /= 2;
        for i in 0..count {
            let (even, odd) = vectors[2 * i].deinterleave(vectors[2 * i + 1]);
            vectors[i] = even.add(odd);
        }
    }
    vectors[0]
}

/// `ln(1 + e^x)`: within a few ulp also where it is small.
#[inline(always)]
pub(super) fn softplus<L: Lanes>(x: L) -> L {
    let e = math::exp(L::zero().sub(x.abs()));
    let one = L::splat(1.0);
    // ln(1 + e) is ln(u) · e / (u − 1) for the rounded u = 1 + e: the rounding goes into both factors.
    let u = one.add(e);
    let rest = L::select(u.eq(one), e, math::log(u).mul(e.div(u.sub(one))));
    // As the second operand NaN stays.
    L::zero().max(x).add(rest)
}
