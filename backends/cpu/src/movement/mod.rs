//! Kernels that move and convert elements: strided copy, cast, fill, gather, scatter, and the random generator's
//! numbers. They share the walks and blocks of `elementwise`; base pointers are the start of a buffer.

pub(crate) mod cast;
pub(crate) mod copy;
pub(crate) mod fill;
pub(crate) mod gather;
pub(crate) mod random;
pub(crate) mod scatter;

use portolan_ops::{OpError, OpName, Result, TensorSpec};

/// Index values in logical order, checked against the extent they index; negative ones are padding.
///
/// # Safety
/// `start` is the start of a buffer that holds the span of `spec`, whose elements are i32.
pub(crate) unsafe fn checked_indices(
    op: &'static str,
    spec: &TensorSpec,
    start: *const u8,
    extent: usize,
) -> Result<Vec<i32>> {
    let walk = crate::elementwise::walk::Walk::logical(spec.shape(), [spec])?;
    let mut indices = Vec::new();
    if indices.try_reserve_exact(walk.numel()).is_err() {
        let op: OpName = op.into();
        return Err(OpError::Internal { op, what: format!("no host memory for the indices of {spec}") });
    }
    for task in 0..walk.tasks() {
        walk.run_task(task, &mut |run| {
            for i in 0..run.len {
                let place = run.places[0] + i * run.strides[0];
                // SAFETY: the place lies within the span, as the caller promised.
                indices.push(unsafe { start.cast::<i32>().add(place).read_unaligned() });
            }
        });
    }
    match indices.iter().position(|&i| i >= 0 && i as usize >= extent) {
        None => Ok(indices),
        Some(at) => Err(OpError::Data {
            op: op.into(),
            what: format!("index {} at position {at}, expected less than {extent}", indices[at]),
        }),
    }
}
