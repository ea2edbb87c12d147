//! [`Rope`]: rotary position embedding.

use super::Rope;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::rope::{RopeScaling, RopeSpec, RopeStyle};

impl Rope {
    /// Rotates pairs of `x [tokens, heads, head_dim]` by angles that grow with `positions [tokens]`; `out`
    /// may be `x` itself.
    ///
    /// # Errors
    /// As [`RopeSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        style: RopeStyle,
        x: &Tensor,
        positions: &Tensor,
        theta: f64,
        out: &mut Tensor,
    ) -> Result<Self> {
        let spec = RopeSpec::new(style, x.spec(), positions.spec(), theta, out.spec())?;
        Self::bind(spec, &[x, positions, out])
    }

    /// Rotates the first `rotary_dim` elements of each head only.
    ///
    /// # Errors
    /// As [`RopeSpec::with_rotary_dim`].
    pub fn rotary_dim(self, rotary_dim: usize) -> Result<Self> {
        self.rebind(self.spec().clone().with_rotary_dim(rotary_dim)?, &[])
    }

    /// Stretches frequencies for a longer context.
    ///
    /// # Errors
    /// As [`RopeSpec::with_scaling`].
    pub fn scaling(self, scaling: RopeScaling) -> Result<Self> {
        self.rebind(self.spec().clone().with_scaling(scaling)?, &[])
    }

    /// Rotates backwards, as [`RopeSpec::inverse`].
    ///
    /// # Errors
    /// As [`crate::Call::bind`].
    pub fn inverse(self) -> Result<Self> {
        self.rebind(self.spec().clone().inverse(), &[])
    }
}
