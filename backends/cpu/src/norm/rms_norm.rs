//! Root-mean-square norm, with or without the residual sum before it: one kernel, two passes over a row
//! that is in the first-level cache for the second.

use crate::Isa;
use crate::pool::Team;
use crate::rows::{Room, Row, Rows, for_each_range, load, pieces, store, vectors};
use crate::simd::{Kernel, Lanes, dispatch};
use core::ops::Range;
use portolan_ops::norm::{AddRmsNormSpec, RmsNormSpec};

/// Normalises the rows of x.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, `weight` is given exactly
/// where the spec has one, nothing else touches them meanwhile, and out overlaps x only where it is x.
pub(crate) unsafe fn rms_norm(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &RmsNormSpec,
    x: *const u8,
    weight: Option<*const u8>,
    out: *mut u8,
) {
    let (n, eps) = (spec.n(), spec.eps());
    let weight = spec.weight().zip(weight).map(|(weight, at)| Rows::new(weight, at));
    let (x, out) = (&Rows::new(spec.x(), x), &Rows::new(spec.out(), out).written(isa, spec.out().numel()));
    for_each_range(team, max_threads, spec.rows(), n, &|rows| {
        dispatch(isa, Norm { x, residual: None, weight: weight.as_ref(), out, rows, n, eps });
    });
}

/// Adds x to the residual and normalises the sum.
///
/// # Safety
/// As [`rms_norm`]; residual overlaps nothing else.
#[allow(clippy::too_many_arguments, reason = "the operands of the operator, one each")]
pub(crate) unsafe fn add_rms_norm(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &AddRmsNormSpec,
    x: *const u8,
    residual: *mut u8,
    weight: Option<*const u8>,
    out: *mut u8,
) {
    let (n, eps) = (spec.n(), spec.eps());
    let weight = spec.weight().zip(weight).map(|(weight, at)| Rows::new(weight, at));
    let residual = Rows::new(spec.residual(), residual);
    let (x, out) = (&Rows::new(spec.x(), x), &Rows::new(spec.out(), out).written(isa, spec.out().numel()));
    for_each_range(team, max_threads, spec.rows(), n, &|rows| {
        dispatch(isa, Norm { x, residual: Some(&residual), weight: weight.as_ref(), out, rows, n, eps });
    });
}

struct Norm<'a> {
    x: &'a Rows,
    residual: Option<&'a Rows>,
    weight: Option<&'a Rows>,
    out: &'a Rows,
    rows: Range<usize>,
    n: usize,
    eps: f32,
}

impl Kernel for Norm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let n = self.n;
        let mut rooms = [Room::new(), Room::new()];
        for index in self.rows {
            // The only row, or one for each group, in turn.
            let weight = self.weight.map(|w| w.row(index));
            let (mut x, out) = (self.x.row(index), self.out.row(index));
            // SAFETY: rows of n elements, by the promises of `rms_norm` and `add_rms_norm`.
            unsafe {
                if let Some(residual) = self.residual {
                    let residual = residual.row(index);
                    add::<L>(x, residual, n, &mut rooms);
                    x = residual;
                }
                let factor = 1.0 / (squares::<L>(x, n, &mut rooms[0]) / n as f32 + self.eps).sqrt();
                scale::<L>(x, factor, weight, out, n, &mut rooms);
            }
        }
        self.out.finish::<L>();
    }
}

/// Sums kept apart, so that one addition need not wait for the last.
const SUMS: usize = 4;

/// The sum of the squares of a row: four vectors of partial sums, joined in a fixed order.
///
/// # Safety
/// The row has n readable elements.
#[inline(always)]
unsafe fn squares<L: Lanes>(x: Row<'_>, n: usize, room: &mut Room) -> f32 {
    let mut sums = [L::zero(); SUMS];
    for (at, count) in pieces(n) {
        // SAFETY: below n.
        let x = unsafe { x.read::<L>(at, count, room) };
        let mut i = 0;
        while i + SUMS * L::LEN <= count {
            for (k, sum) in sums.iter_mut().enumerate() {
                // SAFETY: within the piece.
                let v = unsafe { L::load(x.add(i + k * L::LEN)) };
                *sum = v.mul_add(v, *sum);
            }
            i += SUMS * L::LEN;
        }
        while i < count {
            // SAFETY: as above.
            let v: L = unsafe { load(x.add(i), L::LEN.min(count - i)) };
            sums[0] = v.mul_add(v, sums[0]);
            i += L::LEN;
        }
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

/// Adds x to the residual, rounded to its type.
///
/// # Safety
/// Both rows have n elements, the residual's writable.
#[inline(always)]
unsafe fn add<L: Lanes>(x: Row<'_>, residual: Row<'_>, n: usize, rooms: &mut [Room; 2]) {
    let [x_room, sum_room] = rooms;
    for (at, count) in pieces(n) {
        // SAFETY: below n.
        unsafe {
            let x = x.read::<L>(at, count, x_room);
            let before = residual.read::<L>(at, count, sum_room);
            let sum = residual.target(at, sum_room);
            for (i, len) in vectors::<L>(count) {
                store(sum.add(i), len, load::<L>(before.add(i), len).add(load(x.add(i), len)));
            }
            residual.write::<L>(at, count, sum);
        }
    }
}

/// `out = x · factor · weight`.
///
/// # Safety
/// All rows have n elements, out's writable.
#[inline(always)]
unsafe fn scale<L: Lanes>(
    x: Row<'_>,
    factor: f32,
    weight: Option<Row<'_>>,
    out: Row<'_>,
    n: usize,
    rooms: &mut [Room; 2],
) {
    let [x_room, weight_room] = rooms;
    let factor = L::splat(factor);
    for (at, count) in pieces(n) {
        // SAFETY: below n. A vector is read before its place is written.
        unsafe {
            let x = x.read::<L>(at, count, x_room);
            let to = out.target(at, x_room);
            match weight {
                Some(weight) => {
                    let weight = weight.read::<L>(at, count, weight_room);
                    for (i, len) in vectors::<L>(count) {
                        store(
                            to.add(i),
                            len,
                            load::<L>(x.add(i), len).mul(factor).mul(load(weight.add(i), len)),
                        );
                    }
                }
                None => {
                    for (i, len) in vectors::<L>(count) {
                        store(to.add(i), len, load::<L>(x.add(i), len).mul(factor));
                    }
                }
            }
            out.write::<L>(at, count, to);
        }
    }
}
