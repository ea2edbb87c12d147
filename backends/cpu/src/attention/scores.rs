//! What may be done to scores between the product and the softmax: soft cap, ALiBi, explicit mask.
//!
//! Scores are in units of log 2, so everything that is added to them is converted. Sinks join later, when a
//! row's chunks are merged (`unit`).

use super::task::AttentionBases;
use super::view::{View, read_row};
use crate::simd::{Lanes, apart, math};
use core::f32::consts::LOG2_E;
use portolan_ops::DType;
use portolan_ops::attention::AttentionScores;

/// Attributes of the scores and their raw operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scores {
    soft_cap: Option<f32>,
    attn_mask: Option<View<3>>,
    pub(super) slopes: Option<View<1>>,
    pub(super) sinks: Option<View<1>>,
}

impl Scores {
    pub(super) fn new(spec: &AttentionScores, bases: &AttentionBases) -> Self {
        Self {
            soft_cap: spec.soft_cap(),
            attn_mask: spec.attn_mask().map(|mask| View::new(mask, bases.attn_mask.cast_mut())),
            slopes: spec.slopes().map(|slopes| View::new(slopes, bases.slopes.cast_mut())),
            sinks: spec.sinks().map(|sinks| View::new(sinks, bases.sinks.cast_mut())),
        }
    }

    /// Whether scores stay as the products give them.
    pub(super) fn is_plain(&self) -> bool {
        self.soft_cap.is_none() && self.slopes.is_none() && self.attn_mask.is_none()
    }

    /// `cap · tanh(s / cap)`, if there is a cap.
    ///
    /// # Safety
    /// `len` scores, a multiple of the vector length, may be read and written.
    pub(super) unsafe fn cap<L: Lanes>(&self, scores: *mut f32, len: usize) {
        if let Some(soft_cap) = self.soft_cap {
            // SAFETY: the caller's promise.
            unsafe { cap::<L>(soft_cap * LOG2_E, scores, len) };
        }
    }

    /// Applies the explicit mask, if there is one, to the scores of one row for `count` keys from `start`.
    ///
    /// # Safety
    /// The mask has these entries, `row` has room for `count` floats, and the row's scores lie `apart` from `scores`
    /// on.
    pub(super) unsafe fn mask<L: Lanes>(
        &self,
        [token, head, start]: [usize; 3],
        count: usize,
        row: *mut f32,
        scores: *mut f32,
        apart: usize,
    ) {
        if let Some(entries) = &self.attn_mask {
            // SAFETY: the caller's promise.
            unsafe { mask::<L>(entries, entries.at([token, head, start]), count, row, scores, apart) };
        }
    }
}

apart! {
    /// `cap · tanh(s / cap)`.
    ///
    /// # Safety
    /// As [`Scores::cap`].
    unsafe fn cap<L>(cap: f32, scores: *mut f32, len: usize) {
        let cap = L::splat(cap);
        for i in (0..len).step_by(L::LEN) {
            // SAFETY: the caller's promise.
            unsafe {
                let score = L::load(scores.add(i));
                math::tanh(score.div(cap)).mul(cap).store(scores.add(i));
            }
        }
    }

    /// Applies the entries of a mask from `from` on.
    ///
    /// A row's entries lie along keys and its scores across them, so each is carried over by itself: one access
    /// beside head_dim products.
    ///
    /// # Safety
    /// As [`Scores::mask`].
    unsafe fn mask<'a, L>(
        mask: &'a View<3>,
        from: *const u8,
        count: usize,
        row: *mut f32,
        scores: *mut f32,
        apart: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if mask.dtype() == DType::Bool {
                for key in 0..count {
                    let allowed = *from.add(key * mask.inner()) != 0;
                    *row.add(key) = if allowed { 0.0 } else { f32::NEG_INFINITY };
                }
            } else {
                read_row::<L>(mask.dtype(), from, mask.inner(), count, row);
            }
            for key in 0..count {
                let entry = *row.add(key);
                let score = scores.add(key * apart);
                // What is hidden stays hidden, whatever its score.
                let sum = *score + entry * LOG2_E;
                *score = if entry == f32::NEG_INFINITY { entry } else { sum };
            }
        }
    }
}
