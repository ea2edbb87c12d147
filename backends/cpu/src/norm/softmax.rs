//! Softmax: three passes over a row. The second keeps the exponentials where out is f32; narrower ones
//! would lose bits there, so the third computes them again.

use crate::Isa;
use crate::pool::Team;
use crate::rows::{Row, Rows, for_each_range, with_float};
use crate::simd::{Kernel, Lanes, Stored, dispatch, math};
use core::ops::Range;
use portolan_ops::DType;
use portolan_ops::norm::SoftmaxSpec;

/// Turns the rows of x into distributions.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and out overlaps x only where it is x.
pub(crate) unsafe fn softmax(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &SoftmaxSpec,
    x: *const u8,
    out: *mut u8,
) {
    with_float!(spec.x().dtype(), T => {
        let x = Rows::<T>::new(spec.x(), x);
        match spec.out().dtype() {
            DType::F32 => run::<T, f32, true>(team, max_threads, isa, spec, &x, &Rows::new(spec.out(), out)),
            _ => run::<T, T, false>(team, max_threads, isa, spec, &x, &Rows::new(spec.out(), out)),
        }
    });
}

fn run<T: Stored, O: Stored, const KEEP: bool>(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &SoftmaxSpec,
    x: &Rows<T>,
    out: &Rows<O>,
) {
    let (n, scale) = (spec.n(), spec.scale());
    if n == 0 {
        return;
    }
    for_each_range(team, max_threads, spec.rows(), n, &|rows| match x.is_unit() && out.is_unit() {
        true => dispatch(isa, Softmax::<T, O, true, KEEP> { x, out, rows, n, scale }),
        false => dispatch(isa, Softmax::<T, O, false, KEEP> { x, out, rows, n, scale }),
    });
}

struct Softmax<'a, T, O, const UNIT: bool, const KEEP: bool> {
    x: &'a Rows<T>,
    out: &'a Rows<O>,
    rows: Range<usize>,
    n: usize,
    scale: f32,
}

impl<T: Stored, O: Stored, const UNIT: bool, const KEEP: bool> Kernel for Softmax<'_, T, O, UNIT, KEEP> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for index in self.rows {
            let (x, out) = (self.x.row::<UNIT>(index), self.out.row::<UNIT>(index));
            // SAFETY: rows of n elements, by the promise of `softmax`.
            unsafe { softmax_row::<L, T, O, UNIT, KEEP>(x, out, self.n, self.scale) };
        }
    }
}

/// Turns one row into a distribution; with `KEEP` out holds the exponentials in between, which takes f32.
///
/// # Safety
/// Both rows have n elements, out's writable.
#[inline(always)]
pub(crate) unsafe fn softmax_row<L: Lanes, T: Stored, O: Stored, const UNIT: bool, const KEEP: bool>(
    x: Row<'_, T, UNIT>,
    out: Row<'_, O, UNIT>,
    n: usize,
    scale: f32,
) {
    // SAFETY: n elements.
    let largest = unsafe { largest::<L, T, UNIT>(x, n) };
    // A row of nothing but −inf: with 0 for its maximum every weight is 0, and so is their sum.
    let (largest, scale) =
        (L::splat(if largest == f32::NEG_INFINITY { 0.0 } else { largest }), L::splat(scale));
    let mut sums = [L::zero(); 2];
    let mut i = 0;
    while i < n {
        for sum in &mut sums {
            if i >= n {
                break;
            }
            let count = L::LEN.min(n - i);
            // SAFETY: below n.
            unsafe {
                let weight = math::exp(x.load_or::<L>(i, count, f32::NEG_INFINITY).sub(largest).mul(scale));
                *sum = sum.add(weight);
                if KEEP {
                    out.store(i, count, weight);
                }
            }
            i += L::LEN;
        }
    }
    let sum = sums[0].add(sums[1]).sum();
    let factor = L::splat(if sum == 0.0 { 0.0 } else { 1.0 / sum });
    let mut i = 0;
    while i < n {
        let count = L::LEN.min(n - i);
        // SAFETY: below n.
        unsafe {
            let weight = match KEEP {
                true => out.load::<L>(i, count),
                false => math::exp(x.load::<L>(i, count).sub(largest).mul(scale)),
            };
            out.store(i, count, weight.mul(factor));
        }
        i += L::LEN;
    }
}

/// The largest element that is not NaN, −inf if there is none.
///
/// # Safety
/// The row has n readable elements.
#[inline(always)]
pub(crate) unsafe fn largest<L: Lanes, T: Stored, const UNIT: bool>(x: Row<'_, T, UNIT>, n: usize) -> f32 {
    let mut best = [L::splat(f32::NEG_INFINITY); 4];
    let mut i = 0;
    while i < n {
        for best in &mut best {
            if i >= n {
                break;
            }
            // SAFETY: below n. NaN is never greater, so it leaves the second operand.
            *best = unsafe { x.load_or::<L>(i, L::LEN.min(n - i), f32::NEG_INFINITY) }.max(*best);
            i += L::LEN;
        }
    }
    best[0].max(best[1]).max(best[2].max(best[3])).largest()
}
