//! Gather: slices are strided copies from a place per index, elements a lookup per place.

use super::checked_indices;
use super::copy::copy_run;
use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Walk};
use portolan_ops::kernel::{GatherForm, GatherSpec};
use portolan_ops::{Contract, MAX_RANK, Result, TensorSpec};
use smallvec::SmallVec;

/// Runs `spec`; on an index out of range, nothing is written.
///
/// # Safety
/// The pointers are the starts of buffers that hold the operands' spans; `out` overlaps no input.
pub(crate) unsafe fn gather(
    exec: Exec<'_>,
    spec: &GatherSpec,
    x: *const u8,
    index: *const u8,
    out: *mut u8,
) -> Result<()> {
    let extent = spec.x().dims()[spec.dim()];
    // SAFETY: the caller's promise.
    let indices = unsafe { checked_indices(spec.name(), spec.index(), index, extent)? };
    let bytes = spec.out().dtype().bytes_for(1);
    let (x, out) = (Base::read(x), Base::write(out));
    match spec.form() {
        GatherForm::Slices => slices(exec, spec, &indices, bytes, x, out),
        GatherForm::Elements => elements(exec, spec, &indices, bytes, x, out),
    }
}

/// A walk over one slice, between a tensor indexed along `dim` and one with `index`'s dimensions in its place:
/// places of the whole tensor first, of the sliced one second.
pub(crate) fn slice_walk(whole: &TensorSpec, dim: usize, index: &TensorSpec, sliced: &TensorSpec) -> Walk<2> {
    let mut strides = [[0; 2]; MAX_RANK];
    let mut dims = SmallVec::<[usize; MAX_RANK]>::new();
    for d in (0..whole.rank()).filter(|&d| d != dim) {
        let in_sliced = if d < dim { d } else { d - 1 + index.rank() };
        strides[dims.len()] = [whole.strides()[d], sliced.strides()[in_sliced]];
        dims.push(whole.dims()[d]);
    }
    Walk::of_parts(&dims, &strides, [whole.layout().offset(), sliced.layout().offset()])
}

/// A walk over the indices: the place of each one's slice, relative to the first.
pub(crate) fn index_walk(dim: usize, index: &TensorSpec, sliced: &TensorSpec) -> Walk<1> {
    let mut strides = [[0; 1]; MAX_RANK];
    for (d, stride) in strides[..index.rank()].iter_mut().enumerate() {
        *stride = [sliced.strides()[dim + d]];
    }
    Walk::of_parts(index.dims(), &strides, [0])
}

fn slices(
    exec: Exec<'_>,
    spec: &GatherSpec,
    indices: &[i32],
    bytes: usize,
    x: Base,
    out: Base,
) -> Result<()> {
    let step = spec.x().strides()[spec.dim()];
    let slice = slice_walk(spec.x(), spec.dim(), spec.index(), spec.out());
    let places = index_walk(spec.dim(), spec.index(), spec.out());
    // Short slices are grouped, so that a task moves some 16 Ki elements; long ones are cut by the walk.
    let per_task = (16_384 / slice.numel().max(1)).max(1);
    let pieces = slice.tasks();
    exec.team.run_with(indices.len().div_ceil(per_task) * pieces, exec.max_threads, &|task| {
        let first = task / pieces * per_task;
        for (i, &at) in indices.iter().enumerate().skip(first).take(per_task) {
            let [out_place] = places.places(i);
            slice.run_task(task % pieces, &mut |run| {
                let to = run.places[1] + out_place;
                // SAFETY: the index is in range or negative, so the run lies within both operands.
                unsafe {
                    if at < 0 {
                        zero_run(bytes, out, run.len, to, run.strides[1]);
                    } else {
                        let from = run.places[0] + at as usize * step;
                        copy_run(bytes, x, out, run.len, [from, to], run.strides);
                    }
                }
            });
        }
    });
    Ok(())
}

fn elements(
    exec: Exec<'_>,
    spec: &GatherSpec,
    indices: &[i32],
    bytes: usize,
    x: Base,
    out: Base,
) -> Result<()> {
    let step = spec.x().strides()[spec.dim()];
    // x's view without the indexed dimension, which each index supplies: a stride of 0.
    let mut strides = [[0; 2]; MAX_RANK];
    for (d, stride) in strides[..spec.x().rank()].iter_mut().enumerate() {
        *stride = [if d == spec.dim() { 0 } else { spec.x().strides()[d] }, spec.out().strides()[d]];
    }
    let offsets = [spec.x().layout().offset(), spec.out().layout().offset()];
    let walk = Walk::of_parts(spec.index().dims(), &strides, offsets);
    walk.run(exec, &|run| {
        for i in 0..run.len {
            let to = run.places[1] + i * run.strides[1];
            let from = run.places[0] + i * run.strides[0];
            // SAFETY: the index is in range or negative, so both elements lie within their operands.
            unsafe {
                match indices[run.first + i] {
                    at if at < 0 => zero_run(bytes, out, 1, to, 1),
                    at => copy_run(bytes, x, out, 1, [from + at as usize * step, to], [1, 1]),
                }
            }
        }
    });
    Ok(())
}

/// Writes zero bytes into `len` elements.
///
/// # Safety
/// They lie within the allocation.
unsafe fn zero_run(bytes: usize, out: Base, len: usize, place: usize, stride: usize) {
    if stride == 1 {
        // SAFETY: the caller's promise.
        return unsafe { core::ptr::write_bytes(out.start().add(place * bytes), 0, len * bytes) };
    }
    for i in 0..len {
        // SAFETY: the caller's promise.
        unsafe { core::ptr::write_bytes(out.start().add((place + i * stride) * bytes), 0, bytes) };
    }
}

#[cfg(test)]
mod tests {
    use crate::elementwise::Exec;
    use crate::{Isa, Team};
    use portolan_ops::kernel::GatherSpec;
    use portolan_ops::{DType, TensorSpec};

    #[test]
    fn an_index_out_of_range_is_a_data_fault_and_writes_nothing() {
        let x = TensorSpec::of(DType::F32, &[3, 2]).unwrap();
        let index = TensorSpec::of(DType::I32, &[2]).unwrap();
        let spec = GatherSpec::slices(&x, 0, &index, &TensorSpec::of(DType::F32, &[2, 2]).unwrap()).unwrap();
        let (values, at, mut out) = ([1.0f32; 6], [0i32, 3], [7.0f32; 4]);
        let exec = Exec { team: &Team::new(1).unwrap(), max_threads: 1, isa: Isa::detect() };
        let result = {
            // SAFETY: buffers of six, two and four elements.
            unsafe {
                super::gather(
                    exec,
                    &spec,
                    values.as_ptr().cast(),
                    at.as_ptr().cast(),
                    out.as_mut_ptr().cast(),
                )
            }
        };
        assert_eq!(result.unwrap_err().to_string(), "gather: index 3 at position 1, expected less than 3");
        assert_eq!(out, [7.0; 4]);
    }
}
