//! The logarithm of softmax: three passes over a row, the last of which only subtracts.

use super::softmax::largest;
use crate::Isa;
use crate::pool::Team;
use crate::rows::{Room, Row, Rows, for_each_range, load, load_or, pieces, store, vectors};
use crate::simd::{Kernel, Lanes, dispatch, math};
use core::ops::Range;
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
    let (n, scale) = (spec.n(), spec.scale());
    let (x, out) = (&Rows::new(spec.x(), x), &Rows::new(spec.out(), out));
    for_each_range(team, max_threads, spec.rows(), n, &|rows| {
        dispatch(isa, LogSoftmax { x, out, rows, n, scale });
    });
}

struct LogSoftmax<'a> {
    x: &'a Rows,
    out: &'a Rows,
    rows: Range<usize>,
    n: usize,
    scale: f32,
}

impl Kernel for LogSoftmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let mut room = Room::new();
        for index in self.rows {
            let (x, out) = (self.x.row(index), self.out.row(index));
            // SAFETY: rows of n elements, by the promise of `log_softmax`.
            unsafe { log_softmax_row::<L>(x, out, self.n, self.scale, &mut room) };
        }
    }
}

/// # Safety
/// Both rows have n elements, out's writable.
#[inline(always)]
unsafe fn log_softmax_row<L: Lanes>(x: Row<'_>, out: Row<'_>, n: usize, scale: f32, room: &mut Room) {
    // SAFETY: n elements.
    let largest = unsafe { largest::<L>(x, n, room) };
    // A row of nothing but −inf: with 0 for its maximum every weight is 0, and so is their sum.
    let (largest, scale) =
        (L::splat(if largest == f32::NEG_INFINITY { 0.0 } else { largest }), L::splat(scale));
    let mut sums = [L::zero(); 2];
    for (at, count) in pieces(n) {
        // SAFETY: below n.
        unsafe {
            let x = x.read::<L>(at, count, room);
            for (i, len) in vectors::<L>(count) {
                let shifted = load_or::<L>(x.add(i), len, f32::NEG_INFINITY).sub(largest).mul(scale);
                let sum = &mut sums[i / L::LEN % 2];
                *sum = sum.add(math::exp(shifted));
            }
        }
    }
    let sum = sums[0].add(sums[1]).sum();
    // Of a masked row, so that its elements stay −inf.
    let log_sum = math::log(L::splat(if sum == 0.0 { 1.0 } else { sum }));
    for (at, count) in pieces(n) {
        // SAFETY: below n. A vector is read before its place is written.
        unsafe {
            let x = x.read::<L>(at, count, room);
            let to = out.target(at, room);
            for (i, len) in vectors::<L>(count) {
                store(to.add(i), len, load::<L>(x.add(i), len).sub(largest).mul(scale).sub(log_sum));
            }
            out.write::<L>(at, count, to);
        }
    }
}
