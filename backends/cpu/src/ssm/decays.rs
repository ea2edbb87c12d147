//! What is left at one token of a chunk of what another put in: exponentials of differences of running sums.

use crate::simd::{Lanes, math};

/// Running sums of logarithms of decays in a chunk, in two parts: a difference of long sums would lose what it is
/// about. Both arrays are whole vectors long.
#[derive(Clone, Copy)]
pub(super) struct Decays {
    pub(super) high: *mut f32,
    pub(super) low: *mut f32,
}

impl Decays {
    /// Notes the sum up to token s.
    ///
    /// # Safety
    /// The arrays hold it.
    #[inline(always)]
    pub(super) unsafe fn set(self, s: usize, sum: f64) {
        // SAFETY: the caller's promise.
        unsafe {
            *self.high.add(s) = sum as f32;
            *self.low.add(s) = (sum - f64::from(sum as f32)) as f32;
        }
    }

    /// What is left at token t of what tokens `s..` put in.
    ///
    /// # Safety
    /// The arrays hold a vector from s, and t.
    #[inline(always)]
    pub(super) unsafe fn between<L: Lanes>(self, t: usize, s: usize) -> L {
        let Self { high, low } = self;
        // SAFETY: the caller's promise.
        unsafe {
            let coarse = L::splat(*high.add(t)).sub(L::load(high.add(s)));
            let fine = L::splat(*low.add(t)).sub(L::load(low.add(s)));
            math::exp(coarse.add(fine))
        }
    }

    /// What is left at token t of what was there before the chunk, in every lane.
    ///
    /// # Safety
    /// The arrays hold it.
    #[inline(always)]
    pub(super) unsafe fn since_start<L: Lanes>(self, t: usize) -> L {
        // SAFETY: the caller's promise.
        unsafe { math::exp(L::splat(*self.high.add(t))) }
    }
}
