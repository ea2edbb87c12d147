//! A gated unit over rows: two tensors, halves of one, or its even and odd places.

use crate::Isa;
use crate::pool::Team;
use crate::rows::{Rows, for_each_range, with_float};
use crate::simd::{Kernel, Lanes, Stored, dispatch};
use core::ops::Range;
use portolan_ops::TensorSpec;

/// A function of a gate and what it gates.
pub(super) trait Unit: Copy + Send + Sync {
    /// The unit of each lane; inlined, as all that takes lanes.
    fn of<L: Lanes>(self, gate: L, up: L) -> L;
}

/// What is gated, by what, and where the result goes; views of one tensor where one holds both.
pub(super) struct Specs<'a> {
    pub(super) gate_up: Option<&'a TensorSpec>,
    pub(super) gate: &'a TensorSpec,
    pub(super) up: &'a TensorSpec,
    pub(super) out: &'a TensorSpec,
}

/// The allocations' first bytes; `gate` and `up` are one address where one tensor holds both.
#[derive(Clone, Copy)]
pub(crate) struct GatePointers {
    /// Of the gate.
    pub(crate) gate: *const u8,
    /// Of up.
    pub(crate) up: *const u8,
    /// Of the result.
    pub(crate) out: *mut u8,
}

/// Elements of a row that one task takes at least.
const PIECE: usize = 8 * 1024;

/// Gates up.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the specs describe, nothing else touches them
/// meanwhile, and out overlaps gate and up only where it is one of them.
pub(super) unsafe fn gate<U: Unit>(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    unit: U,
    specs: Specs<'_>,
    pointers: GatePointers,
) {
    let (rows, n) = (specs.out.shape().rows(), specs.out.shape().last());
    if n == 0 {
        return;
    }
    // Long rows are cut, at whole vectors, so that a single one is shared out as well.
    let tasks = rows * n.div_ceil(PIECE);
    with_float!(specs.out.dtype(), T => {
        let out = &Rows::<T>::new(specs.out, pointers.out);
        let gate = &Rows::<T>::new(specs.gate, pointers.gate);
        let up = &Rows::<T>::new(specs.up, pointers.up);
        // Adjacent pairs are loaded together and taken apart in registers.
        let both = specs.gate_up.filter(|both| {
            let step = both.strides().last().copied();
            step == Some(1) && specs.gate.strides().last() == Some(&2) && n > 1
        });
        if let Some(both) = both && out.is_unit() {
            let both = &Rows::<T>::new(both, pointers.gate);
            for_each_range(team, max_threads, tasks, n.min(PIECE), &|range| {
                dispatch(isa, Pairs { unit, both, out, range, n });
            });
            return;
        }
        let unit_stride = gate.is_unit() && up.is_unit() && out.is_unit();
        for_each_range(team, max_threads, tasks, n.min(PIECE), &|range| match unit_stride {
            true => dispatch(isa, Separate::<T, U, true> { unit, gate, up, out, range, n }),
            false => dispatch(isa, Separate::<T, U, false> { unit, gate, up, out, range, n }),
        });
    });
}

/// The row and elements of a piece.
#[inline(always)]
fn piece(index: usize, n: usize) -> (usize, Range<usize>) {
    let pieces = n.div_ceil(PIECE);
    let start = index % pieces * PIECE;
    (index / pieces, start..n.min(start + PIECE))
}

struct Separate<'a, T, U, const UNIT: bool> {
    unit: U,
    gate: &'a Rows<T>,
    up: &'a Rows<T>,
    out: &'a Rows<T>,
    range: Range<usize>,
    n: usize,
}

impl<T: Stored, U: Unit, const UNIT: bool> Kernel for Separate<'_, T, U, UNIT> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for index in self.range {
            let (row, elements) = piece(index, self.n);
            let (gate, up) = (self.gate.row::<UNIT>(row), self.up.row::<UNIT>(row));
            let out = self.out.row::<UNIT>(row);
            let mut i = elements.start;
            while i < elements.end {
                let count = L::LEN.min(elements.end - i);
                // SAFETY: below n, by the promise of `gate`.
                unsafe {
                    let gated = self.unit.of(gate.load::<L>(i, count), up.load::<L>(i, count));
                    out.store(i, count, gated);
                }
                i += L::LEN;
            }
        }
    }
}

struct Pairs<'a, T, U> {
    unit: U,
    both: &'a Rows<T>,
    out: &'a Rows<T>,
    range: Range<usize>,
    n: usize,
}

impl<T: Stored, U: Unit> Kernel for Pairs<'_, T, U> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for index in self.range {
            let (row, elements) = piece(index, self.n);
            let (both, out) = (self.both.row::<true>(row), self.out.row::<true>(row));
            let mut i = elements.start;
            while i < elements.end {
                let count = L::LEN.min(elements.end - i);
                // SAFETY: below n, by the promise of `gate`; `both` has 2n.
                unsafe {
                    let (gate, up) = both.load_pairs::<L>(i, count);
                    out.store(i, count, self.unit.of(gate, up));
                }
                i += L::LEN;
            }
        }
    }
}
