//! Scatter: each part of a slice is one task that visits the indices in order, so no two threads meet.

use super::checked_indices;
use super::copy::{copy_run, copy_view};
use super::gather::{index_walk, slice_walk};
use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Run};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::{BLOCK, Value, with_value};
use core::marker::PhantomData;
use portolan_ops::kernel::{ScatterMode, ScatterSpec};
use portolan_ops::{Contract, DType, Result};

/// Runs `spec`; on an index out of range, nothing is written.
///
/// # Safety
/// The pointers are the starts of buffers that hold the operands' spans; `out` overlaps x only if it is its view,
/// and neither index nor src.
pub(crate) unsafe fn scatter(
    exec: Exec<'_>,
    spec: &ScatterSpec,
    x: *const u8,
    index: *const u8,
    src: *const u8,
    out: *mut u8,
) -> Result<()> {
    let extent = spec.out().dims()[spec.dim()];
    // SAFETY: the caller's promise.
    let indices = unsafe { checked_indices(spec.name(), spec.index(), index, extent)? };
    if x != out.cast_const() || spec.x() != spec.out() {
        // SAFETY: the caller's promise.
        unsafe { copy_view(exec, spec.x(), spec.out(), x, out)? };
    }
    let step = spec.out().strides()[spec.dim()];
    let slice = slice_walk(spec.out(), spec.dim(), spec.index(), spec.src());
    let sources = index_walk(spec.dim(), spec.index(), spec.src());
    let (src, out) = (Base::read(src), Base::write(out));
    let dtype = spec.out().dtype();
    match spec.mode() {
        ScatterMode::Set => {
            let bytes = dtype.bytes_for(1);
            exec.team.run_with(slice.tasks(), exec.max_threads, &|task| {
                for (i, &at) in indices.iter().enumerate().filter(|(_, at)| **at >= 0) {
                    let [from] = sources.places(i);
                    slice.run_task(task, &mut |run| {
                        let places = [run.places[1] + from, run.places[0] + at as usize * step];
                        // SAFETY: the index is in range, so the run lies within both operands.
                        unsafe {
                            copy_run(bytes, src, out, run.len, places, [run.strides[1], run.strides[0]])
                        };
                    });
                }
            });
        }
        ScatterMode::Add => {
            // (index, place of its slice in src), equal indices together and in ascending order of src.
            let mut order: Vec<(usize, usize)> = (indices.iter().enumerate())
                .filter(|(_, at)| **at >= 0)
                .map(|(i, &at)| (at as usize, sources.places(i)[0]))
                .collect();
            order.sort_by_key(|&(at, _)| at);
            exec.team.run_with(slice.tasks(), exec.max_threads, &|task| {
                slice.run_task(task, &mut |run| {
                    for group in order.chunk_by(|a, b| a.0 == b.0) {
                        with_value!(dtype, V => {
                            let to = run.places[0] + group[0].0 * step;
                            let piece = Piece::<V> { dtype, src, out, run, to, group, value: PhantomData };
                            dispatch(exec.isa, piece);
                        });
                    }
                });
            });
        }
    }
    Ok(())
}

/// Adds the slices of one group to their common place, rounding once.
struct Piece<'a, V> {
    dtype: DType,
    src: Base,
    out: Base,
    run: Run<2>,
    to: usize,
    group: &'a [(usize, usize)],
    value: PhantomData<V>,
}

impl<V: Value> Kernel for Piece<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Run { len, places, strides, .. } = self.run;
        let mut sums = [V::ZERO; BLOCK];
        let mut terms = [V::ZERO; BLOCK];
        let mut i = 0;
        while i < len {
            let n = BLOCK.min(len - i);
            let to = self.to + i * strides[0];
            let sums = &mut sums[..n];
            // SAFETY: indices are in range, so the runs lie within both operands.
            unsafe { V::load::<L>(self.dtype, self.out.start(), to, strides[0], sums) };
            for &(_, source) in self.group {
                let from = places[1] + source + i * strides[1];
                // SAFETY: as above.
                unsafe { V::load::<L>(self.dtype, self.src.start(), from, strides[1], &mut terms[..n]) };
                for (sum, &term) in sums.iter_mut().zip(&terms[..n]) {
                    *sum = sum.add(term);
                }
            }
            // SAFETY: as above.
            unsafe { V::store::<L>(self.dtype, self.out.start(), to, strides[0], sums) };
            i += BLOCK;
        }
    }
}
