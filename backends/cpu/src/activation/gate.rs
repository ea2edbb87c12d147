//! A gated unit over rows: two tensors, halves of one, or its even and odd places.

use crate::Isa;
use crate::pool::Team;
use crate::rows::{PIECE, Room, Rows, for_each_range, load, store, vectors};
use crate::simd::{Kernel, Lanes, dispatch};
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
    // Long rows are cut, so that a single one is shared out as well.
    let tasks = rows * n.div_ceil(PIECE);
    let out = &Rows::new(specs.out, pointers.out);
    // Adjacent pairs are loaded together and taken apart in registers.
    let both = specs.gate_up.filter(|both| {
        let step = both.strides().last().copied();
        step == Some(1) && specs.gate.strides().last() == Some(&2) && n > 1
    });
    if let Some(both) = both
        && out.is_unit()
    {
        let both = &Rows::new(both, pointers.gate);
        return for_each_range(team, max_threads, tasks, n.min(PIECE), &|range| {
            dispatch(isa, Pairs { unit, both, out, range, n });
        });
    }
    let (gate, up) = (&Rows::new(specs.gate, pointers.gate), &Rows::new(specs.up, pointers.up));
    for_each_range(team, max_threads, tasks, n.min(PIECE), &|range| {
        dispatch(isa, Separate { unit, gate, up, out, range, n });
    });
}

/// The row, the first element and the number of elements of a task.
#[inline(always)]
fn piece(index: usize, n: usize) -> (usize, usize, usize) {
    let pieces = n.div_ceil(PIECE);
    let start = index % pieces * PIECE;
    (index / pieces, start, PIECE.min(n - start))
}

struct Separate<'a, U> {
    unit: U,
    gate: &'a Rows,
    up: &'a Rows,
    out: &'a Rows,
    range: Range<usize>,
    n: usize,
}

impl<U: Unit> Kernel for Separate<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (mut gate_room, mut up_room) = (Room::new(), Room::new());
        for index in self.range {
            let (row, at, count) = piece(index, self.n);
            let out = self.out.row(row);
            // SAFETY: below n, by the promise of `gate`. A vector is read before its place is written.
            unsafe {
                let gate = self.gate.row(row).read::<L>(at, count, &mut gate_room);
                let up = self.up.row(row).read::<L>(at, count, &mut up_room);
                let to = out.target(at, &mut gate_room);
                for (i, len) in vectors::<L>(count) {
                    store::<L>(to.add(i), len, self.unit.of(load(gate.add(i), len), load(up.add(i), len)));
                }
                out.write::<L>(at, count, to);
            }
        }
    }
}

struct Pairs<'a, U> {
    unit: U,
    both: &'a Rows,
    out: &'a Rows,
    range: Range<usize>,
    n: usize,
}

impl<U: Unit> Kernel for Pairs<'_, U> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (mut room, mut out_room) = (Room::new(), Room::new());
        for index in self.range {
            let (row, start, count) = piece(index, self.n);
            let (both, out) = (self.both.row(row), self.out.row(row));
            // As many pairs as there is room for.
            for at in (start..start + count).step_by(PIECE / 2) {
                let count = (PIECE / 2).min(start + count - at);
                // SAFETY: below n, by the promise of `gate`; `both` has 2n.
                unsafe {
                    let both = both.read::<L>(2 * at, 2 * count, &mut room);
                    let to = out.target(at, &mut out_room);
                    for (i, len) in vectors::<L>(count) {
                        let (first, from) = (L::LEN.min(2 * len), both.add(2 * i));
                        let (gate, up) =
                            load::<L>(from, first).deinterleave(load(from.add(first), 2 * len - first));
                        store(to.add(i), len, self.unit.of(gate, up));
                    }
                    out.write::<L>(at, count, to);
                }
            }
        }
    }
}
