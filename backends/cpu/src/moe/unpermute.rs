//! Rows of experts summed at their tokens: a piece of the result at a time, over all places of the token.

use super::{Grid, data};
use crate::queue::Exec;
use crate::rows::{Room, Row, Rows, for_each_range, load, pieces, store, vectors};
use crate::simd::{Kernel, Lanes, dispatch};
use core::ops::Range;
use portolan_core::sync::atomic::{AtomicUsize, Ordering};
use portolan_ops::Result;
use portolan_ops::moe::MoeUnpermuteSpec;

/// The starts of the operands' allocations; null where the call has no such operand.
pub(crate) struct UnpermutePointers {
    pub(crate) y: *const u8,
    pub(crate) row_map: *const u8,
    pub(crate) weights: *const u8,
    pub(crate) out: *mut u8,
}

// SAFETY: tasks read operands, and write rows of their own through `Rows`.
unsafe impl Sync for UnpermutePointers {}

/// Sums the rows of every token.
///
/// # Errors
/// `Data` for a row that is out of range.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and out overlaps nothing.
pub(crate) unsafe fn unpermute(
    exec: &Exec,
    spec: &MoeUnpermuteSpec,
    pointers: &UnpermutePointers,
) -> Result<()> {
    let bad = AtomicUsize::new(usize::MAX);
    let (y, out) = (&Rows::new(spec.y(), pointers.y), &Rows::new(spec.out(), pointers.out));
    let n = spec.out().dims()[1];
    let work = n.saturating_mul(spec.top_k().max(1));
    for_each_range(&exec.team, exec.threads, spec.tokens(), work, &|tokens| {
        dispatch(exec.isa, Sums { spec, pointers, y, out, tokens, n, bad: &bad });
    });
    match bad.into_inner() {
        usize::MAX => Ok(()),
        pair => {
            let (token, j, rows) = (pair / spec.top_k(), pair % spec.top_k(), spec.y().shape().rows());
            Err(data("moe_unpermute", format!("row_map[{token}, {j}] is beyond the {rows} rows of y")))
        }
    }
}

struct Sums<'a> {
    spec: &'a MoeUnpermuteSpec,
    pointers: &'a UnpermutePointers,
    y: &'a Rows,
    out: &'a Rows,
    tokens: Range<usize>,
    n: usize,
    bad: &'a AtomicUsize,
}

impl Kernel for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (k, rows) = (self.spec.top_k(), self.spec.y().shape().rows());
        let map = Grid::of(self.spec.row_map());
        let weights = self.spec.weights().map(Grid::of);
        let mut terms: Vec<(Row<'_>, f32)> = Vec::with_capacity(k);
        let (mut room, mut sums) = (Room::new(), Room::new());
        for token in self.tokens {
            terms.clear();
            for j in 0..k {
                // SAFETY: the elements exist, by the promise of `unpermute`.
                let (row, weight) = unsafe {
                    let row = *self.pointers.row_map.cast::<i32>().add(map.at(token, j));
                    let weight =
                        weights.map_or(1.0, |w| *self.pointers.weights.cast::<f32>().add(w.at(token, j)));
                    (row, weight)
                };
                match usize::try_from(row) {
                    Err(_) => {}
                    Ok(row) if row < rows => terms.push((self.y.row(row), weight)),
                    Ok(_) => {
                        self.bad.fetch_min(token * k + j, Ordering::Relaxed);
                    }
                }
            }
            let out = self.out.row(token);
            for (at, count) in pieces(self.n) {
                let sums = out.target(at, &mut sums);
                // SAFETY: below n, by the promise of `unpermute`; each of the rows was checked.
                unsafe {
                    for (i, len) in vectors::<L>(count) {
                        store(sums.add(i), len, L::zero());
                    }
                    for (row, weight) in &terms {
                        let (row, weight) = (row.read::<L>(at, count, &mut room), L::splat(*weight));
                        for (i, len) in vectors::<L>(count) {
                            let sum = load::<L>(row.add(i), len).mul_add(weight, load(sums.add(i), len));
                            store(sums.add(i), len, sum);
                        }
                    }
                    out.write::<L>(at, count, sums);
                }
            }
        }
    }
}
