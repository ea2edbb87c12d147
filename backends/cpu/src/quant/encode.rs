//! Numbers of one block to codes, a vector at a time: the innermost loop of `quantize.rs`.

use crate::Isa;
use crate::simd::Lanes;
use crate::simd::code::{self, Code};
use portolan_ops::Offset;
use portolan_ops::codec::Overflow;

/// Numbers between what is encoded and what is asked for: a piece, so that the next one is there when it is looked
/// through for its scales.
const AHEAD: usize = crate::rows::PIECE;

/// Asks memory for a cache line.
#[inline(always)]
fn ask(from: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and faults nowhere.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
    }
    let _ = from;
}

/// How numbers of one block become codes.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    pub(super) offset: Offset,
    pub(super) scale: f32,
    /// The number nearest to the reciprocal of the scale.
    pub(super) reciprocal: f32,
    /// Whether the scale is a power of two: then its reciprocal is exact, and so is what a multiplication by it does.
    pub(super) power: bool,
    /// Minimum or zero point.
    pub(super) shift: f32,
    pub(super) low: f32,
    pub(super) high: f32,
}

impl Rule {
    /// Writes the codes of `x` from element `place` on.
    ///
    /// # Safety
    /// They exist, and no other thread writes to their bytes.
    #[inline(always)]
    pub(super) unsafe fn encode<L: Lanes, C: Code>(mut self, x: &[f32], codes: *mut u8, place: usize) {
        self.reciprocal = 1.0 / self.scale;
        let dead = self.scale == 0.0 || self.scale.is_nan();
        let plain = self.offset == Offset::None && (!C::HALF || place.is_multiple_of(2));
        // SAFETY: the loads lie within the slice, its codes exist.
        unsafe {
            let whole = match (plain && !dead, self.power) {
                (false, _) => 0,
                (_, true) => self.whole::<L, C, true, false>(x, codes, place),
                (_, false) => self.whole::<L, C, false, false>(x, codes, place),
            };
            for (i, part) in x[whole..].chunks(L::LEN).enumerate() {
                let q = match dead {
                    true => L::zero(),
                    false => self.apply::<L, C>(L::load_partial(part.as_ptr(), part.len())),
                };
                let place = place + whole + i * L::LEN;
                code::store::<L, C>(codes, place, part.len(), q, Overflow::Saturate);
            }
        }
    }

    /// The whole vectors of `x`, where a code is the quotient by the scale; returns how many numbers
    /// they are. Nothing is asked in the loop that stays the same; `FOUND`: the scale is that of the largest number,
    /// and [`is_usual`].
    ///
    /// # Safety
    /// As [`Rule::encode`]; half bytes begin with a whole one.
    #[inline(always)]
    pub(super) unsafe fn whole<L: Lanes, C: Code, const POWER: bool, const FOUND: bool>(
        self,
        x: &[f32],
        codes: *mut u8,
        place: usize,
    ) -> usize {
        let whole = x.len() / L::LEN * L::LEN;
        let (scale, reciprocal) = (L::splat(self.scale), L::splat(self.reciprocal));
        let per_byte = if C::HALF { 2 } else { 1 };
        let codes = codes.wrapping_add(place / per_byte);
        // SAFETY: the loads lie within the slice, its codes exist.
        unsafe {
            // A macro, since a closure would be compiled without the instructions of the kernel.
            macro_rules! bits {
                ($at:expr) => {{
                    let from = x.as_ptr().add($at);
                    ask(from.wrapping_add(AHEAD).cast());
                    let x = L::load(from);
                    // A float's sign goes straight to its code.
                    let size = if FOUND && C::BOUNDED { x.abs() } else { x };
                    let q = match (POWER, FOUND && L::ISA != Isa::Portable) {
                        (true, _) => size.mul(reciprocal),
                        (_, true) => divided(size, scale, reciprocal),
                        _ => size.div(scale),
                    };
                    match FOUND && C::BOUNDED {
                        true => C::encode_size(q, x),
                        false => C::encode(self.bounded::<L, C>(q), Overflow::Saturate),
                    }
                }};
            }
            let mut at = 0;
            while C::HALF && at + 2 * L::LEN <= whole {
                L::store_nibbles_of_two(bits!(at), bits!(at + L::LEN), codes.add(at / 2));
                at += 2 * L::LEN;
            }
            while at < whole {
                let to = codes.add(at / per_byte);
                if C::HALF {
                    L::store_nibbles(bits!(at), to)
                } else {
                    L::store_bytes(bits!(at), to)
                }
                at += L::LEN;
            }
        }
        whole
    }

    /// A quotient between the bounds, if its conversion to a code needs that.
    #[inline(always)]
    fn bounded<L: Lanes, C: Code>(self, q: L) -> L {
        if C::BOUNDED { q } else { between(q, self.low, self.high) }
    }

    /// `x`, or what is left of it above the minimum, in units of the scale.
    #[inline(always)]
    fn quotient<L: Lanes>(self, x: L) -> L {
        match self.power {
            true => x.mul(L::splat(self.reciprocal)),
            false => x.div(L::splat(self.scale)),
        }
    }

    /// As `QuantScheme::code_of` where the scale is a number other than 0, less the rounding that the store does.
    #[inline(always)]
    fn apply<L: Lanes, C: Code>(self, x: L) -> L {
        let shift = L::splat(self.shift);
        match self.offset {
            Offset::None => self.bounded::<L, C>(self.quotient(x)),
            Offset::Min => self.bounded::<L, C>(self.quotient(x.sub(shift))),
            // Clamped before the zero point is added: then the quotient is small enough to be rounded.
            Offset::ZeroPoint => {
                let q = between(self.quotient(x), self.low - self.shift, self.high - self.shift);
                q.round().add(shift)
            }
        }
    }
}

/// Whether lanes are scales by which [`divided`] divides, so that no step of it is lost below the smallest number.
#[inline(always)]
pub(super) fn is_usual<L: Lanes>(scale: L) -> bool {
    const LOW: f32 = f32::from_bits((127 - 90) << 23);
    const HIGH: f32 = f32::from_bits((127 + 120) << 23);
    !L::any(scale.lt(L::splat(LOW))) && !L::any(L::splat(HIGH).lt(scale)) && !L::any(scale.unordered())
}

/// `x / scale`, rounded once, where that is 2^−12 or more; what is less stays so, but for the sign of a zero. The
/// reciprocal is the nearest number.
///
/// From a number next to the quotient the remainder is exact, and leads to the nearest one (Markstein): five operations
/// that are all begun before a division would be halfway.
#[inline(always)]
fn divided<L: Lanes>(x: L, scale: L, reciprocal: L) -> L {
    let near = x.mul(reciprocal);
    let next = near.neg_mul_add(scale, x).mul_add(reciprocal, near);
    next.neg_mul_add(scale, x).mul_add(reciprocal, next)
}

/// `q` or the bound beyond which it lies. Bounds come first, so that NaN stays.
#[inline(always)]
fn between<L: Lanes>(q: L, low: f32, high: f32) -> L {
    L::splat(high).min(L::splat(low).max(q))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Kernel, dispatch};

    /// Divides numbers by scales, lane by lane.
    struct Divide<'a>(&'a [[f32; 2]]);

    impl Kernel for Divide<'_> {
        type Output = Vec<(f32, bool)>;
        #[inline(always)]
        fn run<L: Lanes>(self) -> Self::Output {
            let mut quotients = Vec::new();
            for &[x, scale] in self.0 {
                let (x, scale) = (L::splat(x), L::splat(scale));
                let q = divided(x, scale, L::splat(1.0).div(scale)).to_array()[0];
                quotients.push((q, is_usual(scale)));
            }
            quotients
        }
    }

    #[test]
    fn quotients_are_those_of_a_division() {
        let mut state = 1u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let mut pairs = vec![[0.0, 1.0], [448.0, 1.0], [7.0, 2.0]];
        for i in 0..400_000 {
            let exponent = 127 - 90 + next() % 211;
            let mantissa = if i % 7 == 0 { 0x7f_ffff - next() % 4 } else { next() & 0x7f_ffff };
            let scale = f32::from_bits(exponent.min(126 + 120) << 23 | mantissa);
            // A quotient of 2^−12 to 2^9, or what lies halfway between two of them.
            let q = f32::from_bits((115 + next() % 21) << 23 | next() & 0x7f_ffff);
            let above = if i % 2 == 0 { q } else { q.next_up() };
            let x = ((f64::from(q) + f64::from(above)) / 2.0 * f64::from(scale)) as f32;
            if x.is_finite() {
                pairs.push([if i % 3 == 0 { -x } else { x }, scale]);
            }
        }
        for isa in [Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.require().is_ok()) {
            for (&[x, scale], (got, usual)) in pairs.iter().zip(dispatch(isa, Divide(&pairs))) {
                assert!(usual, "{scale:e}");
                assert_eq!(got.to_bits(), (x / scale).to_bits(), "{isa:?}: {x:e} / {scale:e}");
            }
            for scale in [0.0, f32::NAN, f32::INFINITY, 1e-30, 2e36, -1.0] {
                assert!(!dispatch(isa, Divide(&[[1.0, scale]]))[0].1, "{scale:e}");
            }
        }
    }
}
