//! SwiGLU over rows; both forms of the operator are two views here.

use crate::Isa;
use crate::pool::Team;
use crate::rows::{Rows, for_each_range, with_float};
use crate::simd::{Kernel, Lanes, Stored, dispatch, math};
use core::ops::Range;
use portolan_ops::activation::SwigluSpec;

/// Gates up.
///
/// In the fused form `gate` and `up` both are the start of `gate_up`: the spec's views hold the offsets.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and out overlaps gate and up only where it is one of them.
pub(crate) unsafe fn swiglu(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &SwigluSpec,
    gate: *const u8,
    up: *const u8,
    out: *mut u8,
) {
    let (rows, n) = (spec.out().shape().rows(), spec.out().shape().last());
    if n == 0 {
        return;
    }
    with_float!(spec.out().dtype(), T => {
        let (gate, up) = (&Rows::<T>::new(spec.gate(), gate), &Rows::<T>::new(spec.up(), up));
        let out = &Rows::<T>::new(spec.out(), out);
        let unit = gate.is_unit() && up.is_unit() && out.is_unit();
        // Long rows are cut, at whole vectors, so that a single one is shared out as well.
        let pieces = n.div_ceil(PIECE);
        for_each_range(team, max_threads, rows * pieces, n.min(PIECE), &|range| match unit {
            true => dispatch(isa, Gate::<T, true> { gate, up, out, range, n }),
            false => dispatch(isa, Gate::<T, false> { gate, up, out, range, n }),
        });
    });
}

/// Elements of a row that one task takes at least.
const PIECE: usize = 8 * 1024;

struct Gate<'a, T, const UNIT: bool> {
    gate: &'a Rows<T>,
    up: &'a Rows<T>,
    out: &'a Rows<T>,
    range: Range<usize>,
    n: usize,
}

impl<T: Stored, const UNIT: bool> Kernel for Gate<'_, T, UNIT> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let pieces = self.n.div_ceil(PIECE);
        for index in self.range {
            let (row, start) = (index / pieces, index % pieces * PIECE);
            let end = self.n.min(start + PIECE);
            let (gate, up) = (self.gate.row::<UNIT>(row), self.up.row::<UNIT>(row));
            let out = self.out.row::<UNIT>(row);
            let mut i = start;
            while i < end {
                let count = L::LEN.min(end - i);
                // SAFETY: below n, by the promise of `swiglu`.
                unsafe {
                    let gated = math::silu(gate.load::<L>(i, count)).mul(up.load::<L>(i, count));
                    out.store(i, count, gated);
                }
                i += L::LEN;
            }
        }
    }
}
