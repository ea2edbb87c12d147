//! Choice between two operands: bits are moved, so there is one loop per element width.

use super::walk::{Base, Exec, Run, Walk};
use crate::simd::{Kernel, Lanes, dispatch};
use core::marker::PhantomData;
use portolan_ops::Result;
use portolan_ops::kernel::SelectSpec;

/// Runs `spec`.
///
/// # Safety
/// The pointers are the starts of buffers that hold the operands' spans; `out` overlaps an input only if it is
/// the view a or the view b.
pub(crate) unsafe fn select(
    exec: Exec<'_>,
    spec: &SelectSpec,
    cond: *const u8,
    a: *const u8,
    b: *const u8,
    out: *mut u8,
) -> Result<()> {
    let walk = Walk::any_order(spec.out().shape(), [spec.cond(), spec.a(), spec.b(), spec.out()])?;
    let bases = [Base::read(cond), Base::read(a), Base::read(b), Base::write(out)];
    let bits = spec.out().dtype().bits();
    walk.run(exec, &|run| match bits {
        64 => dispatch(exec.isa, Piece::<u64> { bases, run, element: PhantomData }),
        32 => dispatch(exec.isa, Piece::<u32> { bases, run, element: PhantomData }),
        16 => dispatch(exec.isa, Piece::<u16> { bases, run, element: PhantomData }),
        _ => dispatch(exec.isa, Piece::<u8> { bases, run, element: PhantomData }),
    });
    Ok(())
}

struct Piece<T> {
    bases: [Base; 4],
    run: Run<4>,
    element: PhantomData<T>,
}

impl<T: Copy> Kernel for Piece<T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Run { len, places, strides, .. } = self.run;
        let cond = self.bases[0].start().wrapping_add(places[0]);
        let a = self.bases[1].start().cast::<T>().wrapping_add(places[1]);
        let b = self.bases[2].start().cast::<T>().wrapping_add(places[2]);
        let out = self.bases[3].start().cast::<T>().wrapping_add(places[3]);
        // SAFETY: the run lies within all operands, as the caller of `select` promised.
        let choose = |i: usize, s: [usize; 4]| unsafe {
            let (yes, no) = (a.add(i * s[1]).read_unaligned(), b.add(i * s[2]).read_unaligned());
            let chosen = if cond.add(i * s[0]).read() != 0 { yes } else { no };
            out.add(i * s[3]).write_unaligned(chosen);
        };
        // Adjacent elements with strides the compiler knows.
        match strides {
            [1, 1, 1, 1] => (0..len).for_each(|i| choose(i, [1; 4])),
            [1, 1, 0, 1] => (0..len).for_each(|i| choose(i, [1, 1, 0, 1])),
            _ => (0..len).for_each(|i| choose(i, strides)),
        }
    }
}
