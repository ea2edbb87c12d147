//! Walking several strided operands at once: common shape, merged dimensions, inner runs, fixed pieces.
//!
//! Pieces are cut by shape alone, so who computes what, and therefore every bit, is independent of the number
//! of threads. Kernels see only runs: a length, and each operand's place and stride.

use crate::{Isa, Team};
use portolan_ops::{MAX_RANK, Result, Shape, TensorSpec};

/// Where a kernel runs: the team, how much of it, and the instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Exec<'a> {
    /// The threads.
    pub(crate) team: &'a Team,
    /// At most so many of them.
    pub(crate) max_threads: usize,
    /// Which code.
    pub(crate) isa: Isa,
}

/// An operand's first byte, shared by the threads of one region.
#[derive(Clone, Copy)]
pub(crate) struct Base(*mut u8);

// SAFETY: a kernel's pieces write disjoint elements and read what no piece writes (architecture §6, rule 9).
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

impl Base {
    /// An operand that is read.
    pub(crate) fn read(start: *const u8) -> Self {
        Base(start.cast_mut())
    }

    /// An operand that is written.
    pub(crate) fn write(start: *mut u8) -> Self {
        Base(start)
    }

    /// The first byte.
    pub(crate) fn start(self) -> *mut u8 {
        self.0
    }
}

/// Elements of an inner run that one call handles: small enough to share long rows, long enough to amortise a call.
const RUN: usize = 8192;

/// Elements of a task: about 4 µs of streaming, several times what waking a thread costs.
const TASK: usize = 16_384;

/// A run: consecutive elements of the innermost dimension.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run<const N: usize> {
    /// Elements.
    pub(crate) len: usize,
    /// The first element of each operand, in elements from its base.
    pub(crate) places: [usize; N],
    /// The distance between neighbours of each operand.
    pub(crate) strides: [usize; N],
    /// The position of the first element in the walk's order.
    pub(crate) first: usize,
}

/// The common iteration space of `N` operands.
#[derive(Clone, Debug)]
pub(crate) struct Walk<const N: usize> {
    dims: [usize; MAX_RANK],
    strides: [[usize; N]; MAX_RANK],
    rank: usize,
    offsets: [usize; N],
    numel: usize,
    run_len: usize,
    task_len: usize,
}

impl<const N: usize> Walk<N> {
    /// The walk over `shape` in logical order; operands broadcast to it.
    pub(crate) fn logical(shape: &Shape, operands: [&TensorSpec; N]) -> Result<Self> {
        let mut strides = [[0; N]; MAX_RANK];
        let mut offsets = [0; N];
        for (i, spec) in operands.into_iter().enumerate() {
            let view = spec.broadcast_to(shape)?;
            offsets[i] = view.layout().offset();
            for (dim, &stride) in view.strides().iter().enumerate() {
                strides[dim][i] = stride;
            }
        }
        Ok(Self::of_parts(shape.dims(), &strides, offsets))
    }

    /// The walk over `shape` in the order the last operand lies in memory.
    pub(crate) fn any_order(shape: &Shape, operands: [&TensorSpec; N]) -> Result<Self> {
        let mut walk = Self::logical(shape, operands)?;
        let mut order: Vec<usize> = (0..walk.rank).collect();
        order.sort_by_key(|&d| core::cmp::Reverse(walk.strides[d][N - 1]));
        let dims: Vec<usize> = order.iter().map(|&d| walk.dims[d]).collect();
        let mut strides = [[0; N]; MAX_RANK];
        for (to, &from) in order.iter().enumerate() {
            strides[to] = walk.strides[from];
        }
        walk = Self::of_parts(&dims, &strides, walk.offsets);
        Ok(walk)
    }

    /// The walk over explicit dimensions; extents of 1 go, neighbours that every operand steps evenly merge.
    pub(crate) fn of_parts(dims: &[usize], strides: &[[usize; N]; MAX_RANK], offsets: [usize; N]) -> Self {
        let mut walk = Self {
            dims: [1; MAX_RANK],
            strides: [[0; N]; MAX_RANK],
            rank: 0,
            offsets,
            numel: dims.iter().product(),
            run_len: RUN,
            task_len: TASK,
        };
        for (dim, &extent) in dims.iter().enumerate() {
            if extent == 1 {
                continue;
            }
            let last = walk.rank.wrapping_sub(1);
            let merges = walk.rank > 0
                && (0..N).all(|i| Some(walk.strides[last][i]) == strides[dim][i].checked_mul(extent));
            if merges {
                walk.dims[last] *= extent;
                walk.strides[last] = strides[dim];
            } else {
                walk.dims[walk.rank] = extent;
                walk.strides[walk.rank] = strides[dim];
                walk.rank += 1;
            }
        }
        walk
    }

    /// This walk cut into runs of at most `run_len` and tasks of about `task_len`: for kernels that do more than one
    /// pass over an element.
    pub(crate) fn cut_at(mut self, run_len: usize, task_len: usize) -> Self {
        (self.run_len, self.task_len) = (run_len.max(1), task_len.max(1));
        self
    }

    /// Elements.
    pub(crate) fn numel(&self) -> usize {
        self.numel
    }

    /// Length of the inner dimension.
    fn inner(&self) -> usize {
        if self.rank == 0 { 1 } else { self.dims[self.rank - 1] }
    }

    /// Runs a row of the inner dimension is cut into, and runs of a task.
    fn cut(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.div_ceil(self.run_len), (self.task_len / inner.clamp(1, self.run_len)).max(1))
    }

    /// Tasks the walk is cut into.
    pub(crate) fn tasks(&self) -> usize {
        if self.numel == 0 {
            return 0;
        }
        let (per_row, per_task) = self.cut();
        (self.numel / self.inner() * per_row).div_ceil(per_task)
    }

    /// Calls `f` for every run of one task, in order.
    #[inline]
    pub(crate) fn run_task(&self, task: usize, f: &mut dyn FnMut(Run<N>)) {
        if self.numel == 0 {
            return;
        }
        let (per_row, per_task) = self.cut();
        let inner = self.inner();
        let outer_rank = self.rank.saturating_sub(1);
        let inner_strides = if self.rank == 0 { [1; N] } else { self.strides[self.rank - 1] };
        let runs = self.numel / inner * per_row;
        let first_run = task * per_task;
        // The odometer of the outer dimensions, at the row of the first run.
        let mut index = [0; MAX_RANK];
        let mut places = self.offsets;
        let mut rest = first_run / per_row;
        for dim in (0..outer_rank).rev() {
            index[dim] = rest % self.dims[dim];
            rest /= self.dims[dim];
            for (place, stride) in places.iter_mut().zip(self.strides[dim]) {
                *place += index[dim] * stride;
            }
        }
        for run in first_run..runs.min(first_run + per_task) {
            let part = run % per_row;
            let start = part * self.run_len;
            let mut at = places;
            for (place, stride) in at.iter_mut().zip(inner_strides) {
                *place += start * stride;
            }
            let len = (inner - start).min(self.run_len);
            f(Run { len, places: at, strides: inner_strides, first: run / per_row * inner + start });
            if part + 1 < per_row {
                continue;
            }
            for dim in (0..outer_rank).rev() {
                index[dim] += 1;
                for (place, stride) in places.iter_mut().zip(self.strides[dim]) {
                    *place += stride;
                }
                if index[dim] < self.dims[dim] {
                    break;
                }
                for (place, stride) in places.iter_mut().zip(self.strides[dim]) {
                    *place -= self.dims[dim] * stride;
                }
                index[dim] = 0;
            }
        }
    }

    /// Calls `f` for every run, tasks shared among the threads.
    pub(crate) fn run(&self, exec: Exec<'_>, f: &(dyn Fn(Run<N>) + Sync)) {
        exec.team.run_with(self.tasks(), exec.max_threads, &|task| self.run_task(task, &mut |run| f(run)));
    }

    /// The place of each operand at position `position` of the walk's order.
    pub(crate) fn places(&self, position: usize) -> [usize; N] {
        let mut places = self.offsets;
        let mut rest = position;
        for dim in (0..self.rank).rev() {
            for (place, stride) in places.iter_mut().zip(self.strides[dim]) {
                *place += rest % self.dims[dim] * stride;
            }
            rest /= self.dims[dim];
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_ops::DType;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_element_is_visited_once_at_its_place(
            dims in prop::collection::vec(0usize..6, 0..4), wide in 1usize..20_000, flip in any::<bool>(),
            sorted in any::<bool>(),
        ) {
            let dims = [&dims[..], &[wide][..]].concat();
            let mut spec = TensorSpec::of(DType::F32, &dims).unwrap();
            if flip && spec.rank() > 1 { spec = spec.transpose(0, spec.rank() - 1).unwrap(); }
            let out = spec.to_contiguous();
            let make = if sorted { Walk::any_order } else { Walk::logical };
            let walk = make(spec.shape(), [&spec, &out]).unwrap();
            let mut seen = vec![usize::MAX; spec.numel()];
            let mut position = 0;
            for task in 0..walk.tasks() {
                walk.run_task(task, &mut |run| {
                    assert_eq!(run.first, position);
                    position += run.len;
                    for i in 0..run.len {
                        let at = run.places[1] + i * run.strides[1];
                        assert_eq!(seen[at], usize::MAX);
                        seen[at] = run.places[0] + i * run.strides[0];
                        assert_eq!(walk.places(run.first + i), [seen[at], at]);
                    }
                });
            }
            // Out is contiguous, so its place is the logical index; the source's place follows from strides.
            for (index, &place) in seen.iter().enumerate() {
                let (mut rest, mut want) = (index, 0);
                for (&d, &s) in spec.dims().iter().zip(spec.strides()).rev() {
                    want += rest % d * s;
                    rest /= d;
                }
                prop_assert_eq!(place, want);
            }
        }
    }
}
