//! Strided copy: rows as bytes where both sides are adjacent, one loop per element width elsewhere.

use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Run, Walk};
use portolan_ops::kernel::CopySpec;
use portolan_ops::{MAX_RANK, Result, TensorSpec};

/// Runs `spec`.
///
/// # Safety
/// `x` and `out` are the starts of buffers that hold the operands' spans, which do not overlap.
pub(crate) unsafe fn copy_strided(exec: Exec<'_>, spec: &CopySpec, x: *const u8, out: *mut u8) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { copy_view(exec, spec.x(), spec.out(), x, out) }
}

/// Copies the view `x` to the view `out`, of the same extents and element type.
///
/// # Safety
/// As [`copy_strided`].
pub(crate) unsafe fn copy_view(
    exec: Exec<'_>,
    x: &TensorSpec,
    out: &TensorSpec,
    from: *const u8,
    to: *mut u8,
) -> Result<()> {
    if x.dtype().is_sub_byte() {
        // SAFETY: the caller's promise.
        unsafe { copy_nibble_rows(exec, x, out, from, to) };
        return Ok(());
    }
    let walk = Walk::any_order(out.shape(), [x, out])?;
    let (from, to, bytes) = (Base::read(from), Base::write(to), x.dtype().bytes_for(1));
    walk.run(exec, &|run| {
        // SAFETY: the run lies within both operands, which do not overlap.
        unsafe { copy_run(bytes, from, to, run.len, run.places, run.strides) }
    });
    Ok(())
}

/// Copies `len` elements of `bytes` bytes.
///
/// # Safety
/// They lie within allocations and do not overlap.
pub(crate) unsafe fn copy_run(
    bytes: usize,
    from: Base,
    to: Base,
    len: usize,
    places: [usize; 2],
    strides: [usize; 2],
) {
    /// # Safety
    /// As [`copy_run`].
    unsafe fn each<T: Copy>(from: *const u8, to: *mut u8, len: usize, strides: [usize; 2]) {
        let (from, to) = (from.cast::<T>(), to.cast::<T>());
        for i in 0..len {
            // SAFETY: the caller's promise.
            unsafe { to.add(i * strides[1]).write_unaligned(from.add(i * strides[0]).read_unaligned()) };
        }
    }
    // SAFETY: the caller's promise, in each arm.
    unsafe {
        let from = from.start().cast_const().add(places[0] * bytes);
        let to = to.start().add(places[1] * bytes);
        match bytes {
            _ if strides == [1, 1] => core::ptr::copy_nonoverlapping(from, to, len * bytes),
            8 => each::<u64>(from, to, len, strides),
            4 => each::<u32>(from, to, len, strides),
            2 => each::<u16>(from, to, len, strides),
            _ => each::<u8>(from, to, len, strides),
        }
    }
}

/// Copies rows of two elements a byte; rows start on whole bytes, and the half byte after an odd one stays.
///
/// # Safety
/// As [`copy_view`].
unsafe fn copy_nibble_rows(exec: Exec<'_>, x: &TensorSpec, out: &TensorSpec, from: *const u8, to: *mut u8) {
    let len = x.shape().last();
    if x.shape().is_empty() {
        return;
    }
    let outer = x.rank().saturating_sub(1);
    let mut strides = [[0; 2]; MAX_RANK];
    for (dim, stride) in strides[..outer].iter_mut().enumerate() {
        *stride = [x.strides()[dim] / 2, out.strides()[dim] / 2];
    }
    let offsets = [x.layout().offset() / 2, out.layout().offset() / 2];
    let rows = Walk::of_parts(&x.dims()[..outer], &strides, offsets);
    let (from, to) = (Base::read(from), Base::write(to));
    rows.run(exec, &|Run { len: count, places, strides, .. }| {
        for row in 0..count {
            // SAFETY: the row lies within both operands, which do not overlap.
            unsafe {
                let from = from.start().add(places[0] + row * strides[0]);
                let to = to.start().add(places[1] + row * strides[1]);
                core::ptr::copy_nonoverlapping(from, to, len / 2);
                if len % 2 == 1 {
                    let last = to.add(len / 2);
                    *last = *last & 0xF0 | *from.add(len / 2) & 0x0F;
                }
            }
        }
    });
}
