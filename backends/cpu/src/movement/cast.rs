//! Conversion between element types, one rounding each: through f32 where that is exact, and through an f32
//! rounded to odd where a wider type goes to 16 bits or fewer.

use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Run, Walk};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::{BLOCK, Value, with_value};
use core::marker::PhantomData;
use portolan_ops::kernel::CastSpec;
use portolan_ops::{DType, Result};

/// Runs `spec`.
///
/// # Safety
/// `x` and `out` are the starts of buffers that hold the operands' spans, which do not overlap.
pub(crate) unsafe fn cast(exec: Exec<'_>, spec: &CastSpec, x: *const u8, out: *mut u8) -> Result<()> {
    let walk = Walk::any_order(spec.out().shape(), [spec.x(), spec.out()])?;
    let (x, out) = (Base::read(x), Base::write(out));
    let (from, to) = (spec.x().dtype(), spec.out().dtype());
    walk.run(exec, &|run| {
        with_value!(from, V => dispatch(exec.isa, Piece::<V> { from, to, x, out, run, value: PhantomData }))
    });
    Ok(())
}

struct Piece<V> {
    from: DType,
    to: DType,
    x: Base,
    out: Base,
    run: Run<2>,
    value: PhantomData<V>,
}

impl<V: Convert> Kernel for Piece<V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Run { len, places, strides, .. } = self.run;
        let mut buf = [V::ZERO; BLOCK];
        let mut i = 0;
        while i < len {
            let block = &mut buf[..BLOCK.min(len - i)];
            let (from, to) = (places[0] + i * strides[0], places[1] + i * strides[1]);
            let (base, stride) = (self.out.start(), strides[1]);
            // SAFETY: the run lies within both operands, as the caller of `cast` promised.
            unsafe {
                V::load::<L>(self.from, self.x.start(), from, strides[0], block);
                match self.to {
                    DType::F32 => convert::<L, V, f32>(self.to, base, to, stride, block, V::to_f32),
                    DType::F16
                    | DType::BF16
                    | DType::F8E4M3
                    | DType::F8E5M2
                    | DType::F4E2M1
                    | DType::E8M0 => convert::<L, V, f32>(self.to, base, to, stride, block, V::to_odd_f32),
                    // In range, so that rounding to the code changes nothing; what is saturated is truncated.
                    DType::I4 => convert::<L, V, f32>(self.to, base, to, stride, block, |v| {
                        V::to_i8(v).clamp(-8, 7) as f32
                    }),
                    DType::U4 => convert::<L, V, f32>(self.to, base, to, stride, block, |v| {
                        V::to_u8(v).clamp(0, 15) as f32
                    }),
                    DType::F64 => convert::<L, V, f64>(self.to, base, to, stride, block, V::to_f64),
                    DType::I64 => convert::<L, V, i64>(self.to, base, to, stride, block, V::to_i64),
                    DType::I32 => convert::<L, V, i64>(self.to, base, to, stride, block, V::to_i32),
                    DType::I8 => convert::<L, V, i64>(self.to, base, to, stride, block, V::to_i8),
                    DType::U8 => convert::<L, V, i64>(self.to, base, to, stride, block, V::to_u8),
                    _ => convert::<L, V, i64>(self.to, base, to, stride, block, |v| i64::from(v != V::ZERO)),
                }
            }
            i += BLOCK;
        }
    }
}

/// Converts a block and stores it.
///
/// # Safety
/// As [`Value::store`].
#[inline(always)]
unsafe fn convert<L: Lanes, V: Value, W: Value>(
    dtype: DType,
    base: *mut u8,
    place: usize,
    stride: usize,
    block: &[V],
    f: impl Fn(V) -> W,
) {
    let mut converted = [W::ZERO; BLOCK];
    for (to, &from) in converted.iter_mut().zip(block) {
        *to = f(from);
    }
    // SAFETY: the caller's promise.
    unsafe { W::store::<L>(dtype, base, place, stride, &converted[..block.len()]) }
}

/// Conversions of a value; to the narrower integers they saturate from floats and keep the low bits from integers.
trait Convert: Value {
    fn to_f32(self) -> f32;
    /// The f32 next to the value on the side whose last bit is odd, or the value itself where it is exact: a later
    /// rounding to at most 22 bits is then the only one (Boldo and Melquiond, 2008).
    fn to_odd_f32(self) -> f32;
    fn to_f64(self) -> f64;
    fn to_i64(self) -> i64;
    fn to_i32(self) -> i64;
    fn to_i8(self) -> i64;
    fn to_u8(self) -> i64;
}

/// `nearest`, moved one step toward the exact value if it is inexact and even; `over` says it is too large in size.
#[inline(always)]
fn odd(nearest: f32, exact: bool, over: bool) -> f32 {
    let bits = nearest.to_bits();
    if exact || bits & 1 == 1 || nearest.is_nan() {
        return nearest;
    }
    f32::from_bits(if over { bits.wrapping_sub(1) } else { bits + 1 })
}

macro_rules! to_integers {
    () => {
        #[inline(always)]
        fn to_i64(self) -> i64 {
            self as i64
        }
        #[inline(always)]
        fn to_i32(self) -> i64 {
            i64::from(self as i32)
        }
        #[inline(always)]
        fn to_i8(self) -> i64 {
            i64::from(self as i8)
        }
        #[inline(always)]
        fn to_u8(self) -> i64 {
            i64::from(self as u8)
        }
    };
}

impl Convert for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn to_odd_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    to_integers!();
}

impl Convert for f64 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    fn to_odd_f32(self) -> f32 {
        let nearest = self as f32;
        odd(nearest, f64::from(nearest) == self, f64::from(nearest).abs() > self.abs())
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    to_integers!();
}

impl Convert for i64 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }
    #[inline(always)]
    fn to_odd_f32(self) -> f32 {
        let nearest = self as f32;
        let back = nearest as i128;
        let exact = i128::from(self);
        odd(nearest, back == exact, back.unsigned_abs() > exact.unsigned_abs())
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
    to_integers!();
}

#[cfg(test)]
mod tests {
    use super::Convert;
    use portolan_ops::{DType, rounded};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_to_odd_first_gives_the_nearest_bf16(mantissa in any::<u64>(), exponent in 880u64..1160, near in 0u64..3) {
            // Also values right beside a tie of bf16, where rounding twice goes wrong.
            let tie = mantissa & !((1 << 44) - 1) | 1 << 44;
            let mantissa = [mantissa, tie + 1, tie - 1][near as usize] & ((1 << 52) - 1);
            let x = f64::from_bits(exponent << 52 | mantissa);
            let got = half::bf16::from_f32(x.to_odd_f32()).to_f64();
            prop_assert_eq!(got, rounded(DType::BF16, x));
        }

        #[test]
        fn integers_round_once_to_bf16(x in any::<i64>(), shift in 0u32..63) {
            let x = x >> shift;
            prop_assume!(x.unsigned_abs() < 1 << 53);
            let got = half::bf16::from_f32(x.to_odd_f32()).to_f64();
            prop_assert_eq!(got, rounded(DType::BF16, x as f64));
        }
    }
}
