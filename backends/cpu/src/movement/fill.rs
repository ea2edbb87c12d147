//! One number into every element: its bits are made once, then stored.

use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Run, Walk};
use portolan_ops::kernel::FillSpec;
use portolan_ops::{HostTensor, Result, TensorSpec};

/// Runs `spec`.
///
/// # Safety
/// `out` is the start of a buffer that holds the operand's span.
pub(crate) unsafe fn fill(exec: Exec<'_>, spec: &FillSpec, out: *mut u8) -> Result<()> {
    let one = TensorSpec::of(spec.out().dtype(), &[])?;
    let encoded = HostTensor::from_f64(&one, &[spec.value()], 0)?;
    let mut bits = [0; 8];
    let bytes = encoded.bytes().len().min(8);
    bits[..bytes].copy_from_slice(&encoded.bytes()[..bytes]);
    let bits = u64::from_le_bytes(bits);
    let walk = Walk::any_order(spec.out().shape(), [spec.out()])?;
    let out = Base::write(out);
    walk.run(exec, &|run| {
        // SAFETY: the run lies within the operand, as the caller promised.
        unsafe {
            match bytes {
                8 => store(out, run, bits),
                4 => store(out, run, bits as u32),
                2 => store(out, run, bits as u16),
                _ => store(out, run, bits as u8),
            }
        }
    });
    Ok(())
}

/// # Safety
/// The run lies within the allocation.
unsafe fn store<T: Copy>(out: Base, run: Run<1>, value: T) {
    let to = out.start().cast::<T>().wrapping_add(run.places[0]);
    match run.strides[0] {
        1 => {
            for i in 0..run.len {
                // SAFETY: the caller's promise.
                unsafe { to.add(i).write_unaligned(value) };
            }
        }
        stride => {
            for i in 0..run.len {
                // SAFETY: the caller's promise.
                unsafe { to.add(i * stride).write_unaligned(value) };
            }
        }
    }
}
