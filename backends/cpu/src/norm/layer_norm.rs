//! Layer norm: the mean, the squares of what differs from it, and the result; the row stays in the first-level
//! cache for the second and third pass.

use crate::Isa;
use crate::pool::Team;
use crate::rows::{Room, Row, Rows, for_each_range, load, load_or, pieces, store, vectors};
use crate::simd::{Kernel, Lanes, dispatch};
use core::ops::Range;
use portolan_ops::norm::LayerNormSpec;

/// The operands' first bytes; weight and bias are given exactly where the spec has them.
#[derive(Clone, Copy)]
pub(crate) struct LayerNormPointers {
    /// What is normalised.
    pub(crate) x: *const u8,
    /// Factors of the columns.
    pub(crate) weight: Option<*const u8>,
    /// What is added to the columns.
    pub(crate) bias: Option<*const u8>,
    /// Result.
    pub(crate) out: *mut u8,
}

/// Normalises the rows of x.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and out overlaps x only where it is x.
pub(crate) unsafe fn layer_norm(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &LayerNormSpec,
    pointers: LayerNormPointers,
) {
    let (n, eps) = (spec.n(), spec.eps());
    let x = &Rows::new(spec.x(), pointers.x);
    let out = &Rows::new(spec.out(), pointers.out).written(isa, spec.out().numel());
    let weight = spec.weight().zip(pointers.weight).map(|(weight, at)| Rows::new(weight, at));
    let bias = spec.bias().zip(pointers.bias).map(|(bias, at)| Rows::new(bias, at));
    for_each_range(team, max_threads, spec.rows(), n, &|rows| {
        dispatch(isa, Norm { x, weight: weight.as_ref(), bias: bias.as_ref(), out, rows, n, eps });
    });
}

struct Norm<'a> {
    x: &'a Rows,
    weight: Option<&'a Rows>,
    bias: Option<&'a Rows>,
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
        let columns = [self.weight.map(|w| w.row(0)), self.bias.map(|b| b.row(0))];
        let mut rooms = [Room::new(), Room::new()];
        for index in self.rows {
            let (x, out) = (self.x.row(index), self.out.row(index));
            // SAFETY: rows of n elements, by the promise of `layer_norm`.
            unsafe {
                let mean = sum::<L>(x, n, &mut rooms[0]) / n as f32;
                let variance = squares::<L>(x, mean, n, &mut rooms[0]) / n as f32;
                let factor = 1.0 / (variance + self.eps).sqrt();
                scale::<L>(x, [mean, factor], columns, out, n, &mut rooms);
            }
        }
        self.out.finish::<L>();
    }
}

/// Sums kept apart, so that one addition need not wait for the last.
const SUMS: usize = 4;

/// The sum of a row: four vectors of partial sums, joined in a fixed order.
///
/// # Safety
/// The row has n readable elements.
#[inline(always)]
unsafe fn sum<L: Lanes>(x: Row<'_>, n: usize, room: &mut Room) -> f32 {
    let mut sums = [L::zero(); SUMS];
    for (at, count) in pieces(n) {
        // SAFETY: below n.
        let x = unsafe { x.read::<L>(at, count, room) };
        let mut i = 0;
        while i + SUMS * L::LEN <= count {
            for (k, sum) in sums.iter_mut().enumerate() {
                // SAFETY: within the piece.
                *sum = sum.add(unsafe { L::load(x.add(i + k * L::LEN)) });
            }
            i += SUMS * L::LEN;
        }
        while i < count {
            // SAFETY: as above.
            sums[0] = sums[0].add(unsafe { load(x.add(i), L::LEN.min(count - i)) });
            i += L::LEN;
        }
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

/// The sum of the squares of the differences from `mean`, as [`sum`].
///
/// # Safety
/// The row has n readable elements.
#[inline(always)]
unsafe fn squares<L: Lanes>(x: Row<'_>, mean: f32, n: usize, room: &mut Room) -> f32 {
    let centre = L::splat(mean);
    let mut sums = [L::zero(); SUMS];
    for (at, count) in pieces(n) {
        // SAFETY: below n.
        let x = unsafe { x.read::<L>(at, count, room) };
        let mut i = 0;
        while i + SUMS * L::LEN <= count {
            for (k, sum) in sums.iter_mut().enumerate() {
                // SAFETY: within the piece.
                let v = unsafe { L::load(x.add(i + k * L::LEN)) }.sub(centre);
                *sum = v.mul_add(v, *sum);
            }
            i += SUMS * L::LEN;
        }
        while i < count {
            // SAFETY: as above. The lanes beyond hold the mean, and differ by nothing.
            let v = unsafe { load_or::<L>(x.add(i), L::LEN.min(count - i), mean) }.sub(centre);
            sums[0] = v.mul_add(v, sums[0]);
            i += L::LEN;
        }
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

/// `out = (x − mean) · factor · weight + bias`.
///
/// # Safety
/// All rows have n elements, out's writable.
#[inline(always)]
unsafe fn scale<L: Lanes>(
    x: Row<'_>,
    [mean, factor]: [f32; 2],
    [weight, bias]: [Option<Row<'_>>; 2],
    out: Row<'_>,
    n: usize,
    rooms: &mut [Room; 2],
) {
    let [room, column_room] = rooms;
    let (mean, factor) = (L::splat(mean), L::splat(factor));
    for (at, count) in pieces(n) {
        // SAFETY: below n. A vector is read before its place is written.
        unsafe {
            let x = x.read::<L>(at, count, room);
            let to = out.target(at, room);
            for (i, len) in vectors::<L>(count) {
                store(to.add(i), len, load::<L>(x.add(i), len).sub(mean).mul(factor));
            }
            if let Some(weight) = weight {
                let weight = weight.read::<L>(at, count, column_room);
                for (i, len) in vectors::<L>(count) {
                    store(to.add(i), len, load::<L>(to.add(i), len).mul(load(weight.add(i), len)));
                }
            }
            if let Some(bias) = bias {
                let bias = bias.read::<L>(at, count, column_room);
                for (i, len) in vectors::<L>(count) {
                    store(to.add(i), len, load::<L>(to.add(i), len).add(load(bias.add(i), len)));
                }
            }
            out.write::<L>(at, count, to);
        }
    }
}
