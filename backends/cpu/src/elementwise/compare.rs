//! Comparisons of two operands, over blocks of values; the result is one byte per element.

use super::walk::{Base, Exec, Run, Walk};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::{BLOCK, Value, with_value};
use core::marker::PhantomData;
use portolan_ops::kernel::{CompareKind, CompareSpec, Rhs};
use portolan_ops::{DType, Result};

/// Runs `spec`; `b` is not read where the second operand is a number.
///
/// # Safety
/// The pointers are the starts of buffers that hold the operands' spans; `out` overlaps no input.
pub(crate) unsafe fn compare(
    exec: Exec<'_>,
    spec: &CompareSpec,
    a: *const u8,
    b: *const u8,
    out: *mut u8,
) -> Result<()> {
    let (b_spec, number) = match spec.b() {
        Rhs::Tensor(b) => (b, None),
        Rhs::Scalar(value) => (spec.a(), Some(*value)),
    };
    let walk = Walk::any_order(spec.out().shape(), [spec.a(), b_spec, spec.out()])?;
    let (a, b, out) = (Base::read(a), Base::read(b), Base::write(out));
    let (kind, dtype) = (spec.kind(), spec.a().dtype());
    walk.run(exec, &|run| {
        with_value!(dtype, V => {
            dispatch(exec.isa, Piece::<V> { kind, dtype, a, b, out, number, run, value: PhantomData })
        })
    });
    Ok(())
}

struct Piece<V> {
    kind: CompareKind,
    dtype: DType,
    a: Base,
    b: Base,
    out: Base,
    number: Option<f64>,
    run: Run<3>,
    value: PhantomData<V>,
}

impl<V: Value> Kernel for Piece<V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Run { len, places, strides, .. } = self.run;
        let mut left = [V::ZERO; BLOCK];
        let mut right = [self.number.map_or(V::ZERO, V::of_f64); BLOCK];
        let mut holds = [0u8; BLOCK];
        let mut i = 0;
        while i < len {
            let n = BLOCK.min(len - i);
            let (a, b) = (&mut left[..n], &mut right[..n]);
            let at = |operand: usize| places[operand] + i * strides[operand];
            // SAFETY: the run lies within all operands, as the caller of `compare` promised.
            unsafe { V::load::<L>(self.dtype, self.a.start(), at(0), strides[0], a) };
            if self.number.is_none() {
                // SAFETY: as above.
                unsafe { V::load::<L>(self.dtype, self.b.start(), at(1), strides[1], b) };
            }
            // One loop per relation, so that each vectorises.
            match self.kind {
                CompareKind::Eq => each(a, b, &mut holds, |a, b| a == b),
                CompareKind::Ne => each(a, b, &mut holds, |a, b| a != b),
                CompareKind::Lt => each(a, b, &mut holds, |a, b| a < b),
                CompareKind::Le => each(a, b, &mut holds, |a, b| a <= b),
                CompareKind::Gt => each(a, b, &mut holds, |a, b| a > b),
                CompareKind::Ge => each(a, b, &mut holds, |a, b| a >= b),
            }
            let to = self.out.start().wrapping_add(at(2));
            for (i, &byte) in holds[..n].iter().enumerate() {
                // SAFETY: as above; out's elements are bytes.
                unsafe { to.add(i * strides[2]).write(byte) };
            }
            i += BLOCK;
        }
    }
}

#[inline(always)]
fn each<V: Copy>(a: &[V], b: &[V], holds: &mut [u8], f: impl Fn(V, V) -> bool) {
    for ((&a, &b), holds) in a.iter().zip(b).zip(holds) {
        *holds = u8::from(f(a, b));
    }
}
