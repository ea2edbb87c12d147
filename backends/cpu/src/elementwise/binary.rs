//! Arithmetic and logic on two operands, over blocks of values.

use super::walk::{Base, Exec, Run, Walk};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::{BLOCK, Value, with_value};
use core::marker::PhantomData;
use portolan_core::sync::atomic::{AtomicBool, Ordering};
use portolan_ops::kernel::{BinaryKind, BinarySpec, Rhs};
use portolan_ops::{Contract, DType, OpError, Result};

/// Runs `spec`; `b` is not read where the second operand is a number.
///
/// # Safety
/// The pointers are the starts of buffers that hold the operands' spans; `out` overlaps an input only if it is
/// that input's view.
pub(crate) unsafe fn binary(
    exec: Exec<'_>,
    spec: &BinarySpec,
    a: *const u8,
    b: *const u8,
    out: *mut u8,
) -> Result<()> {
    // A number walks along as a copy of a's view that is never read.
    let (b_spec, number) = match spec.b() {
        Rhs::Tensor(b) => (b, None),
        Rhs::Scalar(value) => (spec.a(), Some(*value)),
    };
    let walk = Walk::any_order(spec.out().shape(), [spec.a(), b_spec, spec.out()])?;
    let (a, b, out) = (Base::read(a), Base::read(b), Base::write(out));
    let (kind, dtype) = (spec.kind(), spec.out().dtype());
    let divided_by_zero = AtomicBool::new(false);
    walk.run(exec, &|run| {
        let fault = with_value!(dtype, V => {
            dispatch(exec.isa, Piece::<V> { kind, dtype, a, b, out, number, run, value: PhantomData })
        });
        if fault {
            divided_by_zero.store(true, Ordering::Relaxed);
        }
    });
    if divided_by_zero.into_inner() {
        let what = format!("b holds 0 in {b_spec}; integers do not divide by it");
        return Err(OpError::Data { op: spec.name().into(), what });
    }
    Ok(())
}

struct Piece<V> {
    kind: BinaryKind,
    dtype: DType,
    a: Base,
    b: Base,
    out: Base,
    number: Option<f64>,
    run: Run<3>,
    value: PhantomData<V>,
}

impl<V: Combine> Kernel for Piece<V> {
    /// Whether an integer was divided by 0.
    type Output = bool;

    #[inline(always)]
    fn run<L: Lanes>(self) -> bool {
        let Run { len, places, strides, .. } = self.run;
        let mut left = [V::ZERO; BLOCK];
        let mut right = [self.number.map_or(V::ZERO, V::of_f64); BLOCK];
        let divides = matches!(self.kind, BinaryKind::Div | BinaryKind::Rem);
        let mut fault = false;
        let mut i = 0;
        while i < len {
            let n = BLOCK.min(len - i);
            let (a, b) = (&mut left[..n], &mut right[..n]);
            let at = |operand: usize| places[operand] + i * strides[operand];
            // SAFETY: the run lies within all operands, as the caller of `binary` promised.
            unsafe { V::load::<L>(self.dtype, self.a.start(), at(0), strides[0], a) };
            if self.number.is_none() {
                // SAFETY: as above.
                unsafe { V::load::<L>(self.dtype, self.b.start(), at(1), strides[1], b) };
            }
            fault |= divides && !self.dtype.is_float() && b.contains(&V::ZERO);
            V::combine(self.kind, a, b);
            // SAFETY: as above.
            unsafe { V::store::<L>(self.dtype, self.out.start(), at(2), strides[2], a) };
            i += BLOCK;
        }
        fault
    }
}

#[inline(always)]
fn each<V: Copy>(a: &mut [V], b: &[V], f: impl Fn(V, V) -> V) {
    for (a, &b) in a.iter_mut().zip(b) {
        *a = f(*a, b);
    }
}

/// The arithmetic that every value type has.
#[inline(always)]
fn arithmetic<V: Value>(kind: BinaryKind, a: &mut [V], b: &[V]) {
    match kind {
        BinaryKind::Add => each(a, b, V::add),
        BinaryKind::Sub => each(a, b, V::sub),
        BinaryKind::Mul => each(a, b, V::mul),
        BinaryKind::Div => each(a, b, V::div),
        BinaryKind::Rem => each(a, b, V::rem),
        BinaryKind::Pow => each(a, b, V::pow),
        BinaryKind::Min => each(a, b, V::min),
        BinaryKind::Max => each(a, b, V::max),
        _ => {}
    }
}

trait Combine: Value {
    /// `a = f(a, b)`.
    fn combine(kind: BinaryKind, a: &mut [Self], b: &[Self]);
}

impl Combine for f32 {
    #[inline(always)]
    fn combine(kind: BinaryKind, a: &mut [f32], b: &[f32]) {
        arithmetic(kind, a, b);
    }
}

impl Combine for f64 {
    #[inline(always)]
    fn combine(kind: BinaryKind, a: &mut [f64], b: &[f64]) {
        arithmetic(kind, a, b);
    }
}

impl Combine for i64 {
    #[inline(always)]
    fn combine(kind: BinaryKind, a: &mut [i64], b: &[i64]) {
        match kind {
            BinaryKind::And => each(a, b, |a, b| a & b),
            BinaryKind::Or => each(a, b, |a, b| a | b),
            BinaryKind::Xor => each(a, b, |a, b| a ^ b),
            _ => arithmetic(kind, a, b),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::elementwise::Exec;
    use crate::{Isa, Team};
    use portolan_ops::kernel::{BinaryKind, BinarySpec};
    use portolan_ops::{DType, OpError, TensorSpec};

    #[test]
    fn an_integer_divided_by_zero_is_a_data_fault() {
        let s = TensorSpec::of(DType::I32, &[2]).unwrap();
        let spec = BinarySpec::new(BinaryKind::Div, &s, &s, &s).unwrap();
        let (a, b, mut out) = ([7i32, 8], [2i32, 0], [0i32; 2]);
        let exec = Exec { team: &Team::new(1).unwrap(), max_threads: 1, isa: Isa::detect() };
        let result = {
            // SAFETY: three buffers of two elements each.
            unsafe {
                super::binary(exec, &spec, a.as_ptr().cast(), b.as_ptr().cast(), out.as_mut_ptr().cast())
            }
        };
        assert!(matches!(result, Err(OpError::Data { .. })));
    }
}
