//! Numbers of one block to codes, a vector at a time: the innermost loop of `quantize.rs`.

use crate::simd::Lanes;
use crate::simd::code::{self, Code};
use portolan_ops::Offset;
use portolan_ops::codec::Overflow;

/// Numbers between what is encoded and what is asked for.
const AHEAD: usize = 512;

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
    pub(super) unsafe fn encode<L: Lanes, C: Code>(self, x: &[f32], codes: *mut u8, place: usize) {
        let dead = self.scale == 0.0 || self.scale.is_nan();
        let plain = self.offset == Offset::None && (!C::HALF || place.is_multiple_of(2));
        // SAFETY: the loads lie within the slice, its codes exist.
        unsafe {
            let whole = match (plain && !dead, self.power) {
                (false, _) => 0,
                (_, true) => self.whole::<L, C, true, true>(x, codes, place),
                (_, false) => self.whole::<L, C, false, true>(x, codes, place),
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
    /// they are. Nothing is asked in the loop that stays the same; `NAN`: whether a number may be NaN.
    ///
    /// # Safety
    /// As [`Rule::encode`]; half bytes begin with a whole one.
    #[inline(always)]
    pub(super) unsafe fn whole<L: Lanes, C: Code, const POWER: bool, const NAN: bool>(
        self,
        x: &[f32],
        codes: *mut u8,
        place: usize,
    ) -> usize {
        let whole = x.len() / L::LEN * L::LEN;
        let factor = L::splat(if POWER { 1.0 / self.scale } else { self.scale });
        let per_byte = if C::HALF { 2 } else { 1 };
        let codes = codes.wrapping_add(place / per_byte);
        // SAFETY: the loads lie within the slice, its codes exist.
        unsafe {
            for at in (0..whole).step_by(L::LEN) {
                let from = x.as_ptr().add(at);
                ask(from.wrapping_add(AHEAD).cast());
                let x = L::load(from);
                let q = self.bounded::<L, C>(if POWER { x.mul(factor) } else { x.div(factor) });
                let bits = if NAN { C::encode(q, Overflow::Saturate) } else { C::encode_number(q) };
                let to = codes.add(at / per_byte);
                if C::HALF { L::store_nibbles(bits, to) } else { L::store_bytes(bits, to) }
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
            true => x.mul(L::splat(1.0 / self.scale)),
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

/// `q` or the bound beyond which it lies. Bounds come first, so that NaN stays.
#[inline(always)]
fn between<L: Lanes>(q: L, low: f32, high: f32) -> L {
    L::splat(high).min(L::splat(low).max(q))
}
