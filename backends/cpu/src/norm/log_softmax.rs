//! The logarithm of softmax: three passes over a row, the last of which only subtracts.

use super::softmax::largest;
use crate::Isa;
use crate::pool::Team;
use crate::rows::{Row, Rows, for_each_range, with_float};
use crate::simd::{Kernel, Lanes, Stored, dispatch, math};
use core::ops::Range;
use portolan_ops::DType;
use portolan_ops::norm::LogSoftmaxSpec;

/// Turns the rows of x into logarithms of distributions.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and out overlaps x only where it is x.
pub(crate) unsafe fn log_softmax(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &LogSoftmaxSpec,
    x: *const u8,
    out: *mut u8,
) {
    with_float!(spec.x().dtype(), T => {
        let x = Rows::<T>::new(spec.x(), x);
        match spec.out().dtype() {
            DType::F32 => run::<T, f32>(team, max_threads, isa, spec, &x, &Rows::new(spec.out(), out)),
            _ => run::<T, T>(team, max_threads, isa, spec, &x, &Rows::new(spec.out(), out)),
        }
    });
}

fn run<T: Stored, O: Stored>(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &LogSoftmaxSpec,
    x: &Rows<T>,
    out: &Rows<O>,
) {
    let (n, scale) = (spec.n(), spec.scale());
    if n == 0 {
        return;
    }
    for_each_range(team, max_threads, spec.rows(), n, &|rows| match x.is_unit() && out.is_unit() {
        true => dispatch(isa, LogSoftmax::<T, O, true> { x, out, rows, n, scale }),
        false => dispatch(isa, LogSoftmax::<T, O, false> { x, out, rows, n, scale }),
    });
}

struct LogSoftmax<'a, T, O, const UNIT: bool> {
    x: &'a Rows<T>,
    out: &'a Rows<O>,
    rows: Range<usize>,
    n: usize,
    scale: f32,
}

impl<T: Stored, O: Stored, const UNIT: bool> Kernel for LogSoftmax<'_, T, O, UNIT> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for index in self.rows {
            let (x, out) = (self.x.row::<UNIT>(index), self.out.row::<UNIT>(index));
            // SAFETY: rows of n elements, by the promise of `log_softmax`.
            unsafe { log_softmax_row::<L, T, O, UNIT>(x, out, self.n, self.scale) };
        }
    }
}

/// # Safety
/// Both rows have n elements, out's writable.
#[inline(always)]
unsafe fn log_softmax_row<L: Lanes, T: Stored, O: Stored, const UNIT: bool>(
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
            let shifted = unsafe { x.load_or::<L>(i, count, f32::NEG_INFINITY) }.sub(largest).mul(scale);
            *sum = sum.add(math::exp(shifted));
            i += L::LEN;
        }
    }
    let sum = sums[0].add(sums[1]).sum();
    // Of a masked row, so that its elements stay −inf.
    let log_sum = math::log(L::splat(if sum == 0.0 { 1.0 } else { sum }));
    let mut i = 0;
    while i < n {
        let count = L::LEN.min(n - i);
        // SAFETY: below n.
        unsafe { out.store(i, count, x.load::<L>(i, count).sub(largest).mul(scale).sub(log_sum)) };
        i += L::LEN;
    }
}
