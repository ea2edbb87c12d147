//! Rows of one expert: gathered from their tokens, and added to their tokens' sums.

use super::Grid;
use crate::elementwise::walk::Base;
use crate::movement::copy::copy_run;
use crate::queue::Exec;
use crate::rows::{Row, Rows, for_each_range};
use crate::simd::{Kernel, Lanes, dispatch};
use core::ops::Range;
use portolan_ops::TensorSpec;

/// Elements that are added by one task.
const PIECE: usize = 16 << 10;

/// Copies the rows of x of the tokens that `places` are of, one behind the other.
///
/// # Safety
/// `x` is the start of the spec's allocation; places are below `top_k` times its rows; `to` holds the rows.
pub(crate) unsafe fn gather_rows(
    exec: &Exec,
    spec: &TensorSpec,
    x: *const u8,
    places: &[i32],
    top_k: usize,
    to: *mut u8,
) {
    let (grid, width, bytes) = (Grid::of(spec), spec.dims()[1], spec.dtype().bytes_for(1));
    let (from, to) = (Base::read(x), Base::write(to));
    for_each_range(&exec.team, exec.threads, places.len(), width, &|range| {
        for row in range {
            let token = places[row] as usize / top_k;
            let starts = [grid.at(token, 0), row * width];
            // SAFETY: by contract; rows of `to` are one task's own.
            unsafe { copy_run(bytes, from, to, width, starts, [grid.strides[1], 1]) };
        }
    });
}

/// Rows, and whose sums they are added to.
#[derive(Clone, Copy)]
pub(crate) struct Added<'a> {
    /// `[places, width]`, contiguous.
    pub(crate) y: *const f32,
    pub(crate) places: &'a [i32],
    pub(crate) top_k: usize,
    /// Where the weight of a place is, from `factors` on.
    pub(crate) weights: Grid,
    pub(crate) factors: *const f32,
    /// `[tokens, width]`, contiguous.
    pub(crate) sums: *mut f32,
    pub(crate) width: usize,
}

// SAFETY: tasks read rows and weights, and add to columns of their own.
unsafe impl Sync for Added<'_> {}

/// Adds each row, times its weight, to the sum of its token, in the order of places.
///
/// # Safety
/// The pointers hold what the fields say.
pub(crate) unsafe fn add_rows(exec: &Exec, added: &Added<'_>) {
    // Columns and not rows are shared out: a token may come twice.
    let columns = (PIECE / added.places.len().max(1)).max(1).next_multiple_of(64);
    exec.team.run_with(added.width.div_ceil(columns), exec.threads, &|task| {
        let first = task * columns;
        dispatch(exec.isa, Add { added: *added, columns: first..added.width.min(first + columns) });
    });
}

struct Add<'a> {
    added: Added<'a>,
    columns: Range<usize>,
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Added { y, places, top_k, weights, factors, sums, width } = self.added;
        for (row, &place) in places.iter().enumerate() {
            let (token, j) = (place as usize / top_k, place as usize % top_k);
            // SAFETY: the caller of `add_rows` promises the weight, the row and the sum.
            unsafe {
                let weight = L::splat(*factors.add(weights.at(token, j)));
                let (from, to) = (y.add(row * width), sums.add(token * width));
                let mut i = self.columns.start;
                while i < self.columns.end {
                    let count = L::LEN.min(self.columns.end - i);
                    let (from, to) = (from.add(i), to.add(i));
                    let sum = L::load_partial(to, count);
                    L::load_partial(from, count).mul_add(weight, sum).store_partial(to, count);
                    i += L::LEN;
                }
            }
        }
    }
}

/// Writes complete sums, rounded once, as the rows of the result.
///
/// # Safety
/// `sums` holds the result's elements, contiguous; `out` is the start of its allocation.
pub(crate) unsafe fn store_rows(exec: &Exec, sums: *const f32, spec: &TensorSpec, out: *mut u8) {
    let (tokens, width) = (spec.dims()[0], spec.dims()[1]);
    // SAFETY: by contract.
    let sums = unsafe { core::slice::from_raw_parts(sums, tokens * width) };
    let out = &Rows::new(spec, out);
    for_each_range(&exec.team, exec.threads, tokens, width, &|range| {
        for token in range {
            let from = &sums[token * width..(token + 1) * width];
            dispatch(exec.isa, Store { from, to: out.row(token) });
        }
    });
}

struct Store<'a> {
    from: &'a [f32],
    to: Row<'a>,
}

impl Kernel for Store<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: the row has as many elements.
        unsafe { self.to.write::<L>(0, self.from.len(), self.from.as_ptr()) };
    }
}
