//! Elementary functions over lanes, each written once and correct to a few units in the last place (ulp).
//! Polynomials are least-maximum fits made for the stated intervals; the bounds are tested against f64.

use super::lanes::Lanes;

/// ln 2 in two parts; the first has 9 bits, so its product with an exponent is exact without FMA.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `c[0] + x·(c[1] + x·(…))`.
#[inline(always)]
fn polynomial<L: Lanes, const N: usize>(x: L, c: [f32; N]) -> L {
    let mut sum = L::splat(c[N - 1]);
    let mut i = N - 1;
    while i > 0 {
        i -= 1;
        sum = sum.mul_add(x, L::splat(c[i]));
    }
    sum
}

/// `e^r − 1` for `|r| ≤ ln 2 / 2`.
#[inline(always)]
fn exp_minus_one_reduced<L: Lanes>(r: L) -> L {
    // (e^r − 1 − r) / r² of degree 4: error 3e-9.
    let q = polynomial(r, [0.5, 1.666_652e-1, 4.166_620_6e-2, 8.368_889e-3, 1.395_049e-3]);
    q.mul_add(r.mul(r), r)
}

/// `x = n·ln 2 + r` with integral n and `|r| ≤ ln 2 / 2`, for `|x| < 2^8`.
#[inline(always)]
fn split_at_ln2<L: Lanes>(x: L) -> (L, L) {
    let n = x.mul(L::splat(core::f32::consts::LOG2_E)).round();
    let r = n.neg_mul_add(L::splat(LN2_HIGH), x);
    (n, n.neg_mul_add(L::splat(LN2_LOW), r))
}

/// `e^x`, within 2 ulp, denormal results included; overflow gives inf, underflow 0, NaN stays.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: L) -> L {
    // Beyond these the result is 0 and inf; as the first operand, a bound leaves NaN alone.
    let x = L::splat(-105.0).max(x);
    let x = L::splat(90.0).min(x);
    let (n, r) = split_at_ln2(x);
    L::splat(1.0).add(exp_minus_one_reduced(r)).scale_by_power_of_two(n)
}

/// Natural logarithm, within 2 ulp, denormal arguments included; −inf at ±0, NaN below 0, inf at inf.
#[inline(always)]
pub(crate) fn log<L: Lanes>(x: L) -> L {
    let tiny = x.lt(L::splat(f32::MIN_POSITIVE));
    let scaled = L::select(tiny, x.mul(L::splat(16_777_216.0)), x);
    let shift = L::select(tiny, L::splat(24.0), L::zero());
    // x = m·2^e with m from √½ to √2: e is read after taking away the bits of √½.
    let root_half = L::splat_int(0x3f35_04f3);
    let above = L::sub_int(scaled.bits(), root_half);
    let e = L::from_int(L::shr_int::<23>(above)).sub(shift);
    let m = L::from_bits(L::add_int(L::and_int(above, L::splat_int(0x007f_ffff)), root_half));
    // ln(1+f) = 2·atanh(s) with s = f/(2+f), written f − s·(f − R) so that the large term is exact.
    let f = m.sub(L::splat(1.0));
    let s = f.div(L::splat(2.0).add(f));
    let z = s.mul(s);
    // (2·atanh(s)/s − 2) / s² of degree 2: error 2e-9.
    let big_r = polynomial(z, [6.666_678e-1, 3.997_728_7e-1, 2.987_917e-1]).mul(z);
    let inner = e.neg_mul_add(L::splat(LN2_LOW), s.mul(f.sub(big_r)));
    let y = e.mul_add(L::splat(LN2_HIGH), f.sub(inner));
    let y = L::select(x.eq(L::zero()), L::splat(f32::NEG_INFINITY), y);
    let y = L::select(x.lt(L::zero()), L::splat(f32::NAN), y);
    // inf and NaN pass through.
    L::select(x.lt(L::splat(f32::INFINITY)), y, L::select(x.eq(x), x, L::splat(f32::NAN)))
}

/// Hyperbolic tangent, within 3 ulp; ±1 at ±inf, −0 at −0.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(x: L) -> L {
    // tanh x = (e^2x − 1) / (e^2x + 1); from 9.02 on the result rounds to 1.
    let a = L::splat(18.5).min(x.abs().add(x.abs()));
    let (n, r) = split_at_ln2(a);
    let power = L::splat(1.0).scale_by_power_of_two(n);
    let em1 = exp_minus_one_reduced(r).mul_add(power, power.sub(L::splat(1.0)));
    em1.div(em1.add(L::splat(2.0))).copysign(x)
}

/// `1 / (1 + e^−x)`, within 3 ulp down to denormal results.
#[inline(always)]
pub(crate) fn sigmoid<L: Lanes>(x: L) -> L {
    let e = exp(L::zero().sub(x.abs()));
    L::select(x.lt(L::zero()), e, L::splat(1.0)).div(L::splat(1.0).add(e))
}

/// `x / (1 + e^−x)`, within 4 ulp; −inf gives NaN, as the formula does.
#[inline(always)]
pub(crate) fn silu<L: Lanes>(x: L) -> L {
    x.mul(sigmoid(x))
}

/// `x / 2 · (1 + erf(x / √2))`; −inf gives NaN, as the formula does.
#[inline(always)]
pub(crate) fn gelu<L: Lanes>(x: L) -> L {
    let t = erf(x.mul(L::splat(core::f32::consts::FRAC_1_SQRT_2)));
    x.mul(L::splat(0.5)).mul(L::splat(1.0).add(t))
}

/// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`; −inf gives NaN, as the formula does.
#[inline(always)]
pub(crate) fn gelu_tanh<L: Lanes>(x: L) -> L {
    // √(2/π).
    let inner = x.mul(x).mul(L::splat(0.044_715)).mul_add(x, x).mul(L::splat(0.797_884_6));
    x.mul(L::splat(0.5)).mul(L::splat(1.0).add(tanh(inner)))
}

/// The error function, within 3 ulp; ±1 at ±inf.
#[inline(always)]
pub(crate) fn erf<L: Lanes>(x: L) -> L {
    let a = x.abs();
    // erf(x)/x in x² up to 1: relative error 1.2e-9.
    let small = polynomial(
        a.mul(a),
        [
            core::f32::consts::FRAC_2_SQRT_PI,
            -3.761_262_6e-1,
            1.128_358_5e-1,
            -2.685_381_2e-2,
            5.188_327_6e-3,
            -8.010_193e-4,
            7.853_858_4e-5,
        ],
    )
    .mul(a);
    // −ln erfc(x) from 1 to 4: error 1e-9 relative to erf; beyond, the result rounds to 1.
    let b = L::splat(4.0).min(a);
    let decay = polynomial(
        b,
        [
            3.415_172e-4,
            1.127_089_2,
            6.381_448e-1,
            1.031_067_9e-1,
            -2.183_808_2e-2,
            2.947_663e-3,
            -1.863_797e-4,
        ],
    );
    let large = L::splat(1.0).sub(exp(L::zero().sub(decay)));
    L::select(a.lt(L::splat(1.0)), small, large).copysign(x)
}

/// Sine and cosine in radians, each within 2 ulp for every finite argument; NaN at ±inf.
///
/// Up to `1e7` (1.6 million turns) lanes work together; a vector with a larger argument takes the C
/// library's f64 functions lane by lane.
#[inline(always)]
pub(crate) fn sin_cos<L: Lanes>(x: L) -> (L, L) {
    if L::any(L::splat(1e7).lt(x.abs())) {
        return sin_cos_by_lane(x);
    }
    let (r, quadrant) = reduce_by_half_pi(x);
    let z = r.mul(r);
    // (sin r / r − 1) / r² and (cos r − 1 + r²/2) / r⁴ up to π/4: errors 4e-9 and 1e-10.
    let sin = polynomial(z, [-1.666_665_5e-1, 8.332_174e-3, -1.951_665_5e-4]).mul(z).mul_add(r, r);
    let cos = polynomial(z, [4.166_664_7e-2, -1.388_736_1e-3, 2.443_773e-5])
        .mul(z)
        .sub(L::splat(0.5))
        .mul_add(z, L::splat(1.0));
    // Odd quadrants exchange the two; the sign follows the second bit of the quadrant, or of its successor.
    let one = L::splat_int(1);
    let swap = L::splat(0.5).lt(L::from_int(L::and_int(quadrant, one)));
    let sign = |q: L::Int| L::from_bits(L::shl_int::<30>(L::and_int(q, L::splat_int(2))));
    // Adding the top bit changes it and nothing else.
    let flip = |value: L, sign: L| L::from_bits(L::add_int(value.bits(), sign.bits()));
    (
        flip(L::select(swap, cos, sin), sign(quadrant)),
        flip(L::select(swap, sin, cos), sign(L::add_int(quadrant, one))),
    )
}

/// `x = quadrant·π/2 + r` with `|r| ≤ π/4` rounded once, for `|x| ≤ 1e7`.
///
/// In f64: π/2 is split so that the quadrant's product with the first part (29 bits) is exact.
#[inline(always)]
fn reduce_by_half_pi<L: Lanes>(x: L) -> (L, L::Int) {
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    let half_pi_high = f64::from_bits(core::f64::consts::FRAC_PI_2.to_bits() & !0xff_ffff);
    let half_pi_low = (core::f64::consts::FRAC_PI_2 - half_pi_high) + 6.123_233_995_736_766e-17;
    let (mut r, mut low) = ([0f32; 16], [0f32; 16]);
    for (i, &x) in x.to_array().iter().enumerate().take(L::LEN) {
        let x = f64::from(x);
        let turns = x * core::f64::consts::FRAC_2_PI + ROUNDER;
        let n = turns - ROUNDER;
        r[i] = ((x - n * half_pi_high) - n * half_pi_low) as f32;
        // The integer stands in the low bits of the sum's mantissa.
        low[i] = f32::from_bits(turns.to_bits() as u32);
    }
    (L::from_array(&r), L::from_array(&low).bits())
}

#[inline(never)]
fn by_lane(x: [f32; 16]) -> ([f32; 16], [f32; 16]) {
    (x.map(|x| f64::from(x).sin() as f32), x.map(|x| f64::from(x).cos() as f32))
}

#[inline(always)]
fn sin_cos_by_lane<L: Lanes>(x: L) -> (L, L) {
    let (sin, cos) = by_lane(x.to_array());
    (L::from_array(&sin), L::from_array(&cos))
}

#[cfg(test)]
mod tests {
    use super::super::lanes::{Kernel, Stored, dispatch};
    use super::*;
    use crate::Isa;

    /// A function of one variable that exists for every vector type.
    trait Function: Copy {
        fn of<L: Lanes>(self, x: L) -> L;
    }

    macro_rules! functions {
        ($($name:ident => |$x:ident| $body:expr),* $(,)?) => { $(
            #[derive(Clone, Copy)]
            struct $name;
            impl Function for $name {
                #[inline(always)]
                fn of<L: Lanes>(self, $x: L) -> L { $body }
            }
        )* };
    }
    functions! {
        Exp => |x| exp(x), Log => |x| log(x), Tanh => |x| tanh(x), Sigmoid => |x| sigmoid(x), Silu => |x| silu(x),
        Erf => |x| erf(x), Sin => |x| sin_cos(x).0, Cos => |x| sin_cos(x).1,
    }

    struct Map<'a, F> {
        function: F,
        values: &'a mut [f32],
    }
    impl<F: Function> Kernel for Map<'_, F> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            for chunk in self.values.chunks_mut(L::LEN) {
                // SAFETY: the chunk has this many values.
                unsafe {
                    let x = L::load_partial(chunk.as_ptr(), chunk.len());
                    self.function.of(x).store_partial(chunk.as_mut_ptr(), chunk.len());
                }
            }
        }
    }

    fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.require().is_ok())
    }

    fn map<F: Function>(isa: Isa, function: F, x: &[f32]) -> Vec<f32> {
        let mut values = x.to_vec();
        dispatch(isa, Map { function, values: &mut values });
        values
    }

    /// The distance between neighbours at `want`, of f32.
    fn ulp(want: f64) -> f64 {
        let exponent = (want.abs().log2().floor() as i32).max(-126);
        2f64.powi(exponent - 23)
    }

    /// A sweep over every f32 at a prime stride of bit patterns, restricted to `[low, high]`, both signs.
    fn sweep(low: f32, high: f32) -> Vec<f32> {
        (0..=u32::MAX)
            .step_by(4_001)
            .map(f32::from_bits)
            .filter(|x| (low..=high).contains(x))
            .chain((0..200_000).map(|i| low.max(-1e4) + (high.min(1e4) - low.max(-1e4)) * (i as f32 / 2e5)))
            .collect()
    }

    fn check<F: Function>(function: F, oracle: impl Fn(f64) -> f64, x: &[f32], bound: f64) {
        assert!(x.len() > 100_000);
        for isa in available() {
            let mut worst = (0.0, 0.0f32, 0.0f32);
            for (&x, got) in x.iter().zip(map(isa, function, x)) {
                let want = oracle(f64::from(x));
                if want.abs() >= f64::from(f32::MAX) {
                    assert!(got.is_infinite() || f64::from(got) == want, "{isa:?} at {x}: {got}");
                    continue;
                }
                let error = (f64::from(got) - want).abs() / if want == 0.0 { 1e-45 } else { ulp(want) };
                if error.is_nan() || error > worst.0 {
                    worst = (if error.is_nan() { f64::INFINITY } else { error }, x, got);
                }
            }
            println!("{isa:?} {}: {:.3} ulp at {}", core::any::type_name::<F>(), worst.0, worst.1);
            assert!(worst.0 <= bound, "{isa:?}: {} ulp at {}, got {}", worst.0, worst.1, worst.2);
        }
    }

    #[test]
    fn exp_is_within_two_ulp() {
        check(Exp, f64::exp, &sweep(-120.0, 100.0), 2.0);
    }

    #[test]
    fn log_is_within_two_ulp() {
        check(Log, f64::ln, &sweep(1e-45, f32::MAX), 2.0);
        check(Log, f64::ln, &sweep(0.5, 2.0), 2.0);
    }

    #[test]
    fn tanh_is_within_three_ulp() {
        check(Tanh, f64::tanh, &sweep(-12.0, 12.0), 3.0);
    }

    #[test]
    fn sigmoid_and_silu_are_within_a_few_ulp() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        check(Sigmoid, sigmoid, &sweep(-105.0, 100.0), 3.0);
        check(Silu, |x| x * sigmoid(x), &sweep(-80.0, 100.0), 4.0);
    }

    #[test]
    fn erf_is_within_three_ulp() {
        check(Erf, portolan_ops::kernel::gemm::erf, &sweep(-6.0, 6.0), 3.0);
    }

    #[test]
    fn sine_and_cosine_are_within_two_ulp_for_every_finite_argument() {
        check(Sin, f64::sin, &sweep(f32::MIN, f32::MAX), 2.0);
        check(Cos, f64::cos, &sweep(f32::MIN, f32::MAX), 2.0);
        // Dense around multiples of a quarter turn, where the result or its derivative vanishes.
        let near: Vec<f32> = (0..400_000)
            .map(|i| (i as f64 * 15.0 * core::f64::consts::FRAC_PI_2) as f32)
            .filter(|x| *x <= 1e7)
            .collect();
        check(Sin, f64::sin, &near, 2.0);
        check(Cos, f64::cos, &near, 2.0);
    }

    #[test]
    fn edges_give_the_limits() {
        let inf = f32::INFINITY;
        for isa in available() {
            assert_eq!(map(isa, Exp, &[-inf, inf, -200.0, 200.0, 0.0, -0.0]), [0.0, inf, 0.0, inf, 1.0, 1.0]);
            assert_eq!(map(isa, Log, &[0.0, -0.0, inf, 1.0]), [-inf, -inf, inf, 0.0]);
            assert_eq!(map(isa, Tanh, &[-inf, inf, 100.0, -1e38]), [-1.0, 1.0, 1.0, -1.0]);
            assert_eq!(map(isa, Sigmoid, &[-inf, inf, 0.0, -1e4]), [0.0, 1.0, 0.5, 0.0]);
            assert_eq!(map(isa, Erf, &[-inf, inf, 0.0, 1e38]), [-1.0, 1.0, 0.0, 1.0]);
            assert_eq!(map(isa, Silu, &[inf, 0.0, -1e38]), [inf, 0.0, -0.0]);
            assert_eq!((map(isa, Sin, &[0.0]), map(isa, Cos, &[0.0])), (vec![0.0], vec![1.0]));
            assert!(map(isa, Tanh, &[-0.0])[0].is_sign_negative());
            let nan = [f32::NAN, -f32::NAN];
            let results = [
                map(isa, Exp, &nan),
                map(isa, Log, &nan),
                map(isa, Tanh, &nan),
                map(isa, Sigmoid, &nan),
                map(isa, Silu, &nan),
                map(isa, Erf, &nan),
                map(isa, Sin, &nan),
                map(isa, Cos, &nan),
                map(isa, Log, &[-1.0, -inf]),
                map(isa, Sin, &[inf, -inf]),
                map(isa, Cos, &[inf, -inf]),
            ];
            for (i, values) in results.iter().enumerate() {
                assert!(values.iter().all(|x| x.is_nan()), "{isa:?} {i}: {values:?}");
            }
        }
    }

    struct Convert<'a, T> {
        from: &'a [f32],
        to: &'a mut [T],
        back: &'a mut [f32],
    }
    impl<T: Stored> Kernel for Convert<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            let chunks =
                self.from.chunks(L::LEN).zip(self.to.chunks_mut(L::LEN)).zip(self.back.chunks_mut(L::LEN));
            for ((from, to), back) in chunks {
                // SAFETY: the chunks have this many values.
                unsafe {
                    if from.len() == L::LEN {
                        T::store(L::load(from.as_ptr()), to.as_mut_ptr());
                        T::load::<L>(to.as_ptr()).store(back.as_mut_ptr());
                    } else {
                        T::store_partial(
                            L::load_partial(from.as_ptr(), from.len()),
                            to.as_mut_ptr(),
                            to.len(),
                        );
                        T::load_partial::<L>(to.as_ptr(), to.len())
                            .store_partial(back.as_mut_ptr(), back.len());
                    }
                }
            }
        }
    }

    fn converts_like_the_scalar<T: Stored>(zero: T) {
        let x: Vec<f32> = (0..=u32::MAX).step_by(10_007).map(f32::from_bits).chain([f32::NAN; 4]).collect();
        assert_ne!(x.len() % 16, 0);
        for isa in available() {
            let (mut to, mut back) = (vec![zero; x.len()], vec![0.0; x.len()]);
            dispatch(isa, Convert { from: &x, to: &mut to, back: &mut back });
            for ((&x, &to), &back) in x.iter().zip(&to).zip(&back) {
                let want = T::of_f32(x).to_f32();
                assert!(to.to_f32() == want || (want.is_nan() && to.to_f32().is_nan()), "{isa:?} {x:e}");
                assert!(back == want || (want.is_nan() && back.is_nan()), "{isa:?} {x:e} {back:e}");
            }
        }
    }

    #[test]
    fn narrow_types_round_to_nearest_even_on_every_path() {
        converts_like_the_scalar(half::f16::ZERO);
        converts_like_the_scalar(half::bf16::ZERO);
        converts_like_the_scalar(0f32);
    }

    struct Deinterleave<'a>(&'a [f32]);
    impl Kernel for Deinterleave<'_> {
        type Output = (Vec<f32>, Vec<f32>);
        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Output {
            // SAFETY: the slice has 32 values, two vectors at most.
            let (a, b) = unsafe { (L::load(self.0.as_ptr()), L::load(self.0.as_ptr().add(L::LEN))) };
            let (even, odd) = a.deinterleave(b);
            (even.to_array()[..L::LEN].to_vec(), odd.to_array()[..L::LEN].to_vec())
        }
    }

    #[test]
    fn pairs_come_apart_in_order() {
        let values: Vec<f32> = (0..32).map(|i| i as f32).collect();
        for isa in available() {
            let (even, odd) = dispatch(isa, Deinterleave(&values));
            let want: Vec<f32> = (0..even.len()).map(|i| 2.0 * i as f32).collect();
            assert_eq!(even, want, "{isa:?}");
            assert_eq!(odd, want.iter().map(|x| x + 1.0).collect::<Vec<_>>(), "{isa:?}");
        }
    }

    struct Sum<'a>(&'a [f32]);
    impl Kernel for Sum<'_> {
        type Output = (f32, f32, usize);
        #[inline(always)]
        fn run<L: Lanes>(self) -> (f32, f32, usize) {
            // SAFETY: the slice has 16 values, LEN is at most that.
            let lanes = unsafe { L::load(self.0.as_ptr()) };
            (lanes.sum(), lanes.largest(), L::LEN)
        }
    }

    #[test]
    fn reductions_take_every_lane_once() {
        let values: Vec<f32> = (0..16).map(|i| (1 << i) as f32).collect();
        for isa in available() {
            let (sum, largest, len) = dispatch(isa, Sum(&values));
            assert_eq!((sum, largest), (((1 << len) - 1) as f32, (1 << (len - 1)) as f32), "{isa:?}");
        }
    }
}
