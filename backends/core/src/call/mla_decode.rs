//! [`MlaDecode`]: absorbed latent attention.

use super::MlaDecode;
use super::attention::score_attributes;
use crate::tensor::Tensor;
use crate::weight::Lens;
use portolan_ops::Result;
use portolan_ops::attention::{AttentionMask, MlaDecodeSpec};

const OP: &str = "mla_decode";

impl MlaDecode {
    /// Absorbed queries over a contiguous latent cache.
    ///
    /// # Errors
    /// As [`MlaDecodeSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        q: &Tensor,
        cache: &Tensor,
        q_lens: &Lens,
        kv_lens: &Lens,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<Self> {
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let spec = MlaDecodeSpec::new(q.spec(), cache.spec(), &queries, &keys, scale, out.spec())?;
        Self::bind(spec, &[q, cache, q_lens.tensor(), kv_lens.tensor(), out])
    }

    /// Absorbed queries over a paged latent cache.
    ///
    /// # Errors
    /// As [`MlaDecodeSpec::paged`] and [`crate::Call::bind`].
    pub fn paged(
        q: &Tensor,
        cache: &Tensor,
        block_table: &Tensor,
        q_lens: &Lens,
        kv_lens: &Lens,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<Self> {
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let table = block_table.spec();
        let spec = MlaDecodeSpec::paged(q.spec(), cache.spec(), table, &queries, &keys, scale, out.spec())?;
        Self::bind(spec, &[q, cache, block_table, q_lens.tensor(), kv_lens.tensor(), out])
    }

    /// Absorbed queries over a contiguous latent cache of codes and its scales, one for each position.
    ///
    /// # Errors
    /// As [`MlaDecodeSpec::quantized`] and [`crate::Call::bind`].
    pub fn quantized(
        q: &Tensor,
        [cache, cache_scale]: [&Tensor; 2],
        q_lens: &Lens,
        kv_lens: &Lens,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<Self> {
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let entries = [cache.spec(), cache_scale.spec()];
        let spec = MlaDecodeSpec::quantized(q.spec(), entries, &queries, &keys, scale, out.spec())?;
        Self::bind(spec, &[q, cache, cache_scale, q_lens.tensor(), kv_lens.tensor(), out])
    }

    /// Absorbed queries over a paged latent cache of codes and its scales, one for each position.
    ///
    /// # Errors
    /// As [`MlaDecodeSpec::quantized_paged`] and [`crate::Call::bind`].
    pub fn quantized_paged(
        q: &Tensor,
        [cache, cache_scale]: [&Tensor; 2],
        block_table: &Tensor,
        q_lens: &Lens,
        kv_lens: &Lens,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<Self> {
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let (entries, table) = ([cache.spec(), cache_scale.spec()], block_table.spec());
        let spec =
            MlaDecodeSpec::quantized_paged(q.spec(), entries, table, &queries, &keys, scale, out.spec())?;
        Self::bind(spec, &[q, cache, cache_scale, block_table, q_lens.tensor(), kv_lens.tensor(), out])
    }

    /// Which keys a query sees; causal when not said.
    ///
    /// # Errors
    /// As [`MlaDecodeSpec::with_mask`].
    pub fn mask(self, mask: AttentionMask) -> Result<Self> {
        self.rebind(self.spec().clone().with_mask(mask)?, &[])
    }

    /// Also writes the logarithm of each row's sum.
    ///
    /// # Errors
    /// As [`MlaDecodeSpec::with_lse`] and [`crate::Call::bind`].
    pub fn lse(self, lse: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_lse(lse.spec())?, &[("lse", lse)])
    }

    score_attributes!(MlaDecodeSpec);
}
