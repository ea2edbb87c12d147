//! [`MoeUnpermute`]: the rows of experts back to their tokens.

use super::MoeUnpermute;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::moe::MoeUnpermuteSpec;

impl MoeUnpermute {
    /// The sum of each token's rows of `y [R, H]` or `[E, C, H]`.
    ///
    /// # Errors
    /// As [`MoeUnpermuteSpec::new`] and [`crate::Call::bind`].
    pub fn new(y: &Tensor, row_map: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(MoeUnpermuteSpec::new(y.spec(), row_map.spec(), out.spec())?, &[y, row_map, out])
    }

    /// Multiplies each row by `weights [T, k]`.
    ///
    /// # Errors
    /// As [`MoeUnpermuteSpec::with_weights`] and [`crate::Call::bind`].
    pub fn weights(self, weights: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_weights(weights.spec())?, &[("weights", weights)])
    }
}
