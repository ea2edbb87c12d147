//! [`MergeAttention`]: partial results over disjoint sets of keys.

use super::MergeAttention;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::attention::MergeAttentionSpec;

impl MergeAttention {
    /// Merges the parts along their first dimension.
    ///
    /// # Errors
    /// As [`MergeAttentionSpec::new`] and [`crate::Call::bind`].
    pub fn new(parts: &Tensor, lses: &Tensor, out: &mut Tensor) -> Result<Self> {
        let spec = MergeAttentionSpec::new(parts.spec(), lses.spec(), out.spec())?;
        Self::bind(spec, &[parts, lses, out])
    }

    /// Also writes the logarithm of each row's sum over all parts.
    ///
    /// # Errors
    /// As [`MergeAttentionSpec::with_lse`] and [`crate::Call::bind`].
    pub fn lse(self, lse: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_lse(lse.spec())?, &[("lse", lse)])
    }
}
