//! Softmax: three passes over a row. The second keeps the exponentials where out is f32; narrower ones
//! would lose bits there, so the third computes them again.

use crate::Isa;
use crate::pool::Team;
use crate::rows::{Room, Row, Rows, for_each_range, load, load_or, pieces, store, vectors};
use crate::simd::{Kernel, Lanes, dispatch, math};
use core::ops::Range;
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
    let (n, scale) = (spec.n(), spec.scale());
    let (x, out) = (&Rows::new(spec.x(), x), &Rows::new(spec.out(), out));
    for_each_range(team, max_threads, spec.rows(), n, &|rows| {
        dispatch(isa, Softmax { x, out, rows, n, scale });
    });
}

struct Softmax<'a> {
    x: &'a Rows,
    out: &'a Rows,
    rows: Range<usize>,
    n: usize,
    scale: f32,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for index in self.rows {
            // SAFETY: rows of n elements, by the promise of `softmax`.
            unsafe { softmax_row::<L>(self.x.row(index), self.out.row(index), self.n, self.scale) };
        }
    }
}

/// Turns one row into a distribution.
///
/// # Safety
/// Both rows have n elements, out's writable.
#[inline(always)]
pub(crate) unsafe fn softmax_row<L: Lanes>(x: Row<'_>, out: Row<'_>, n: usize, scale: f32) {
    let mut rooms = [Room::new(), Room::new()];
    let [x_room, out_room] = &mut rooms;
    // SAFETY: n elements.
    let largest = unsafe { largest::<L>(x, n, x_room) };
    // A row of nothing but −inf: with 0 for its maximum every weight is 0, and so is their sum.
    let (largest, scale) =
        (L::splat(if largest == f32::NEG_INFINITY { 0.0 } else { largest }), L::splat(scale));
    let weigh = |x: L| math::exp(x.sub(largest).mul(scale));
    let mut sums = [L::zero(); 2];
    for (at, count) in pieces(n) {
        // SAFETY: below n. A vector is read before its place is written.
        unsafe {
            let x = x.read::<L>(at, count, x_room);
            let to = out.target(at, out_room);
            for (i, len) in vectors::<L>(count) {
                let weight = weigh(load_or(x.add(i), len, f32::NEG_INFINITY));
                let sum = &mut sums[i / L::LEN % 2];
                *sum = sum.add(weight);
                if out.is_f32() {
                    store(to.add(i), len, weight);
                }
            }
            if out.is_f32() {
                out.write::<L>(at, count, to);
            }
        }
    }
    let sum = sums[0].add(sums[1]).sum();
    let factor = L::splat(if sum == 0.0 { 0.0 } else { 1.0 / sum });
    for (at, count) in pieces(n) {
        // SAFETY: as above.
        unsafe {
            let to = out.target(at, out_room);
            if out.is_f32() {
                let weights = out.read::<L>(at, count, out_room);
                for (i, len) in vectors::<L>(count) {
                    store(to.add(i), len, load::<L>(weights.add(i), len).mul(factor));
                }
            } else {
                let x = x.read::<L>(at, count, x_room);
                for (i, len) in vectors::<L>(count) {
                    store(to.add(i), len, weigh(load(x.add(i), len)).mul(factor));
                }
            }
            out.write::<L>(at, count, to);
        }
    }
}

/// The largest element that is not NaN, −inf if there is none.
///
/// # Safety
/// The row has n readable elements.
#[inline(always)]
pub(crate) unsafe fn largest<L: Lanes>(x: Row<'_>, n: usize, room: &mut Room) -> f32 {
    let mut best = [L::splat(f32::NEG_INFINITY); 4];
    for (at, count) in pieces(n) {
        // SAFETY: below n.
        let x = unsafe { x.read::<L>(at, count, room) };
        for start in (0..count).step_by(4 * L::LEN) {
            for (k, best) in best.iter_mut().enumerate() {
                let i = start + k * L::LEN;
                if i >= count {
                    break;
                }
                // SAFETY: within the piece. NaN is never greater, so it leaves the second operand.
                *best =
                    unsafe { load_or::<L>(x.add(i), L::LEN.min(count - i), f32::NEG_INFINITY) }.max(*best);
            }
        }
    }
    best[0].max(best[1]).max(best[2].max(best[3])).largest()
}
