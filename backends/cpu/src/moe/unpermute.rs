//! Rows of experts summed at their tokens: a vector of the result at a time, over all places of the token.

use super::{Grid, data};
use crate::queue::Exec;
use crate::rows::{Row, Rows, for_each_range, with_float};
use crate::simd::{Kernel, Lanes, Stored, dispatch};
use core::ops::Range;
use portolan_core::sync::atomic::{AtomicUsize, Ordering};
use portolan_ops::moe::MoeUnpermuteSpec;
use portolan_ops::{DType, Result};

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
    with_float!(spec.y().dtype(), T => {
        let y = &Rows::<T>::new(spec.y(), pointers.y);
        match spec.out().dtype() {
            DType::F32 => run(exec, spec, pointers, y, &Rows::<f32>::new(spec.out(), pointers.out), &bad),
            _ => run(exec, spec, pointers, y, &Rows::<T>::new(spec.out(), pointers.out), &bad),
        }
    });
    match bad.into_inner() {
        usize::MAX => Ok(()),
        pair => {
            let (token, j, rows) = (pair / spec.top_k(), pair % spec.top_k(), spec.y().shape().rows());
            Err(data("moe_unpermute", format!("row_map[{token}, {j}] is beyond the {rows} rows of y")))
        }
    }
}

fn run<T: Stored, O: Stored>(
    exec: &Exec,
    spec: &MoeUnpermuteSpec,
    pointers: &UnpermutePointers,
    y: &Rows<T>,
    out: &Rows<O>,
    bad: &AtomicUsize,
) {
    let n = spec.out().dims()[1];
    let work = n.saturating_mul(spec.top_k().max(1));
    for_each_range(
        &exec.team,
        exec.threads,
        spec.tokens(),
        work,
        &|tokens| match y.is_unit() && out.is_unit() {
            true => dispatch(exec.isa, Sums::<T, O, true> { spec, pointers, y, out, tokens, n, bad }),
            false => dispatch(exec.isa, Sums::<T, O, false> { spec, pointers, y, out, tokens, n, bad }),
        },
    );
}

struct Sums<'a, T, O, const UNIT: bool> {
    spec: &'a MoeUnpermuteSpec,
    pointers: &'a UnpermutePointers,
    y: &'a Rows<T>,
    out: &'a Rows<O>,
    tokens: Range<usize>,
    n: usize,
    bad: &'a AtomicUsize,
}

impl<T: Stored, O: Stored, const UNIT: bool> Kernel for Sums<'_, T, O, UNIT> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (k, rows) = (self.spec.top_k(), self.spec.y().shape().rows());
        let map = Grid::of(self.spec.row_map());
        let weights = self.spec.weights().map(Grid::of);
        let mut terms: Vec<(Row<'_, T, UNIT>, f32)> = Vec::with_capacity(k);
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
                    Ok(row) if row < rows => terms.push((self.y.row::<UNIT>(row), weight)),
                    Ok(_) => {
                        self.bad.fetch_min(token * k + j, Ordering::Relaxed);
                    }
                }
            }
            let out = self.out.row::<UNIT>(token);
            let mut i = 0;
            while i < self.n {
                let count = L::LEN.min(self.n - i);
                let mut sum = L::zero();
                // SAFETY: below n, by the promise of `unpermute`; each of the rows was checked.
                unsafe {
                    for (row, weight) in &terms {
                        sum = row.load::<L>(i, count).mul_add(L::splat(*weight), sum);
                    }
                    out.store(i, count, sum);
                }
                i += L::LEN;
            }
        }
    }
}
