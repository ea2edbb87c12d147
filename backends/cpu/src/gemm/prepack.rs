//! Weights packed once: the second factor stored as whole panels of the microkernel, in its own type.
//!
//! A panel is what the tile streams, so one row and many rows both read it once, front to back; narrow types
//! stay narrow and are widened a panel at a time in the first-level cache.

use super::Mat;
use super::kernel::Kernel;
use crate::Isa;
use portolan_ops::DType;

/// Bytes of a packed `[k, n]` factor of floats; saturates at `usize::MAX`.
pub(crate) fn packed_bytes(isa: Isa, dtype: DType, n: usize, k: usize) -> usize {
    let nr = Kernel::of(isa, dtype, dtype).nr;
    dtype.bytes_for(n.div_ceil(nr).saturating_mul(nr).saturating_mul(k))
}

/// Packs b `[k, n]`: panels of `nr` columns, each `[k, nr]`, the last one filled up with zeros.
///
/// # Safety
/// `b` has these extents; `dst` holds [`packed_bytes`] and does not overlap it.
pub(crate) unsafe fn pack_b(isa: Isa, b: &Mat, n: usize, k: usize, dst: *mut u8) {
    let nr = Kernel::of(isa, b.dtype, b.dtype).nr;
    // SAFETY: dst holds all panels; the columns behind n are zeroed, the others written by the visit.
    unsafe {
        if !n.is_multiple_of(nr) {
            let tail = n / nr * nr * k * b.size();
            dst.add(tail).write_bytes(0, nr * k * b.size());
        }
        visit(b, n, k, nr, dst, |plain, packed, size| std::ptr::copy_nonoverlapping(plain, packed, size));
    }
}

/// Writes b `[k, n]` from its packed form: the inverse of [`pack_b`].
///
/// # Safety
/// `b` has these extents and may be written; `src` holds [`packed_bytes`] from [`pack_b`].
pub(crate) unsafe fn unpack_b(isa: Isa, src: *const u8, n: usize, k: usize, b: &Mat) {
    let nr = Kernel::of(isa, b.dtype, b.dtype).nr;
    // SAFETY: src is only read.
    unsafe {
        visit(b, n, k, nr, src.cast_mut(), |plain, packed, size| {
            std::ptr::copy_nonoverlapping(packed, plain, size);
        });
    }
}

/// Calls `copy` with both places of every element.
///
/// # Safety
/// As the two functions above.
unsafe fn visit(
    b: &Mat,
    n: usize,
    k: usize,
    nr: usize,
    packed: *mut u8,
    copy: impl Fn(*mut u8, *mut u8, usize),
) {
    // Runs of 16 products a column: one cache line of the plain side when products are side by side.
    const RUN: usize = 16;
    let size = b.size();
    for j0 in (0..n).step_by(nr) {
        for p0 in (0..k).step_by(RUN) {
            for j in j0..(j0 + nr).min(n) {
                for p in p0..(p0 + RUN).min(k) {
                    // SAFETY: p < k and j < n, so both elements exist.
                    unsafe { copy(b.at(0, p, j), packed.add((j0 * k + p * nr + (j - j0)) * size), size) };
                }
            }
        }
    }
}
