//! Functions of one element, over blocks of values; elementary functions are those of `simd::math`.

use super::walk::{Base, Exec, Run, Walk};
use crate::simd::{Kernel, Lanes, dispatch, math};
use crate::value::{BLOCK, Value, with_value};
use portolan_ops::kernel::{UnaryKind, UnarySpec};
use portolan_ops::{DType, Result};

/// Runs `spec`.
///
/// # Safety
/// `x` and `out` are the starts of buffers that hold the operands' spans; `out` overlaps x only if it is x's view.
pub(crate) unsafe fn unary(exec: Exec<'_>, spec: &UnarySpec, x: *const u8, out: *mut u8) -> Result<()> {
    let walk = Walk::any_order(spec.out().shape(), [spec.x(), spec.out()])?;
    let (x, out) = (Base::read(x), Base::write(out));
    let (kind, from, to) = (spec.kind(), spec.x().dtype(), spec.out().dtype());
    walk.run(exec, &|run| {
        with_value!(from, V => dispatch(exec.isa, Piece::<V> { kind, from, to, x, out, run, f: apply_of::<V>() }))
    });
    Ok(())
}

/// Applies the function to a block of values.
trait Apply: Value {
    fn apply<L: Lanes>(kind: UnaryKind, values: &mut [Self]);
}

struct Piece<V> {
    kind: UnaryKind,
    from: DType,
    to: DType,
    x: Base,
    out: Base,
    run: Run<2>,
    f: core::marker::PhantomData<V>,
}

fn apply_of<V: Apply>() -> core::marker::PhantomData<V> {
    core::marker::PhantomData
}

impl<V: Apply> Kernel for Piece<V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Run { len, places, strides, .. } = self.run;
        let mut buf = [V::ZERO; BLOCK];
        let mut i = 0;
        while i < len {
            let block = &mut buf[..BLOCK.min(len - i)];
            // SAFETY: the run lies within both operands, as the caller of `unary` promised.
            unsafe { V::load::<L>(self.from, self.x.start(), places[0] + i * strides[0], strides[0], block) };
            V::apply::<L>(self.kind, block);
            // SAFETY: as above.
            unsafe {
                V::store::<L>(self.to, self.out.start(), places[1] + i * strides[1], strides[1], block)
            };
            i += BLOCK;
        }
    }
}

/// Applies a function of one value to all; the compiler vectorises the simple ones.
#[inline(always)]
fn each<V: Copy>(values: &mut [V], f: impl Fn(V) -> V) {
    for value in values {
        *value = f(*value);
    }
}

/// Applies a function of lanes to all. A macro, since a function that is passed on may stay a call, and its vectors then
/// go through memory at every step.
macro_rules! lanes {
    ($lanes:ty, $values:expr, $x:ident => $y:expr) => {{
        let values: &mut [f32] = $values;
        let mut i = 0;
        while i < values.len() {
            let n = <$lanes>::LEN.min(values.len() - i);
            // SAFETY: n values from i on are in the slice.
            unsafe {
                let at = values.as_mut_ptr().add(i);
                let $x = <$lanes>::load_partial(at, n);
                ($y).store_partial(at, n);
            }
            i += <$lanes>::LEN;
        }
    }};
}

impl Apply for f32 {
    #[inline(always)]
    fn apply<L: Lanes>(kind: UnaryKind, values: &mut [f32]) {
        match kind {
            UnaryKind::Neg => each(values, |x| -x),
            UnaryKind::Abs => each(values, f32::abs),
            UnaryKind::Square => each(values, |x| x * x),
            UnaryKind::Recip => each(values, |x| 1.0 / x),
            UnaryKind::Sqrt => each(values, f32::sqrt),
            UnaryKind::Rsqrt => each(values, |x| 1.0 / x.sqrt()),
            UnaryKind::Exp => lanes!(L, values, x => math::exp(x)),
            UnaryKind::Log => lanes!(L, values, x => math::log(x)),
            UnaryKind::Sin => lanes!(L, values, x => math::sin_cos(x).0),
            UnaryKind::Cos => lanes!(L, values, x => math::sin_cos(x).1),
            UnaryKind::Tanh => lanes!(L, values, x => math::tanh(x)),
            UnaryKind::Erf => lanes!(L, values, x => math::erf(x)),
            UnaryKind::Sigmoid => lanes!(L, values, x => math::sigmoid(x)),
            UnaryKind::Relu => each(values, |x| if x < 0.0 { 0.0 } else { x }),
            UnaryKind::Silu => lanes!(L, values, x => math::silu(x)),
            UnaryKind::Gelu => lanes!(L, values, x => math::gelu(x)),
            UnaryKind::GeluTanh => lanes!(L, values, x => math::gelu_tanh(x)),
            UnaryKind::Floor => each(values, f32::floor),
            UnaryKind::Ceil => each(values, f32::ceil),
            UnaryKind::Round => each(values, f32::round_ties_even),
            UnaryKind::IsNan => each(values, |x| f32::from(u8::from(x.is_nan()))),
            UnaryKind::IsFinite => each(values, |x| f32::from(u8::from(x.is_finite()))),
            _ => each(values, |x| kind.apply(f64::from(x)) as f32),
        }
    }
}

impl Apply for f64 {
    #[inline(always)]
    fn apply<L: Lanes>(kind: UnaryKind, values: &mut [f64]) {
        match kind {
            UnaryKind::Neg => each(values, |x| -x),
            UnaryKind::Abs => each(values, f64::abs),
            UnaryKind::Square => each(values, |x| x * x),
            UnaryKind::Recip => each(values, |x| 1.0 / x),
            UnaryKind::Sqrt => each(values, f64::sqrt),
            // The C library's functions, by way of std: f64 is the type of references, not of speed.
            _ => each(values, |x| kind.apply(x)),
        }
    }
}

impl Apply for i64 {
    #[inline(always)]
    fn apply<L: Lanes>(kind: UnaryKind, values: &mut [i64]) {
        match kind {
            UnaryKind::Neg => each(values, i64::wrapping_neg),
            UnaryKind::Abs => each(values, i64::wrapping_abs),
            UnaryKind::Square => each(values, |x| x.wrapping_mul(x)),
            UnaryKind::Not => each(values, |x| i64::from(x == 0)),
            _ => {}
        }
    }
}
