//! [`SparseAttention`]: latent attention over listed entries.

use super::SparseAttention;
use crate::tensor::Tensor;
use crate::weight::Lens;
use portolan_ops::Result;
use portolan_ops::attention::SparseAttentionSpec;

const OP: &str = "sparse_attention";

impl SparseAttention {
    /// Absorbed queries over listed entries of a contiguous latent cache.
    ///
    /// # Errors
    /// As [`SparseAttentionSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        q: &Tensor,
        cache: &Tensor,
        indices: &Tensor,
        q_lens: &Lens,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<Self> {
        let lens = q_lens.spec(OP, "q_lens")?;
        let spec =
            SparseAttentionSpec::new(q.spec(), cache.spec(), indices.spec(), &lens, scale, out.spec())?;
        Self::bind(spec, &[q, cache, indices, q_lens.tensor(), out])
    }

    /// Absorbed queries over listed entries of a paged latent cache.
    ///
    /// # Errors
    /// As [`SparseAttentionSpec::paged`] and [`crate::Call::bind`].
    pub fn paged(
        q: &Tensor,
        cache: &Tensor,
        block_table: &Tensor,
        indices: &Tensor,
        q_lens: &Lens,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<Self> {
        let lens = q_lens.spec(OP, "q_lens")?;
        let spec = SparseAttentionSpec::paged(
            q.spec(),
            cache.spec(),
            block_table.spec(),
            indices.spec(),
            &lens,
            scale,
            out.spec(),
        )?;
        Self::bind(spec, &[q, cache, block_table, indices, q_lens.tensor(), out])
    }

    /// Absorbed queries over listed entries of a contiguous latent cache of codes and its scales.
    ///
    /// # Errors
    /// As [`SparseAttentionSpec::quantized`] and [`crate::Call::bind`].
    pub fn quantized(
        q: &Tensor,
        [cache, cache_scale]: [&Tensor; 2],
        indices: &Tensor,
        q_lens: &Lens,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<Self> {
        let (lens, entries) = (q_lens.spec(OP, "q_lens")?, [cache.spec(), cache_scale.spec()]);
        let spec =
            SparseAttentionSpec::quantized(q.spec(), entries, indices.spec(), &lens, scale, out.spec())?;
        Self::bind(spec, &[q, cache, cache_scale, indices, q_lens.tensor(), out])
    }

    /// Absorbed queries over listed entries of a paged latent cache of codes and its scales.
    ///
    /// # Errors
    /// As [`SparseAttentionSpec::quantized_paged`] and [`crate::Call::bind`].
    pub fn quantized_paged(
        q: &Tensor,
        [cache, cache_scale]: [&Tensor; 2],
        block_table: &Tensor,
        indices: &Tensor,
        q_lens: &Lens,
        scale: f32,
        out: &mut Tensor,
    ) -> Result<Self> {
        let (lens, entries) = (q_lens.spec(OP, "q_lens")?, [cache.spec(), cache_scale.spec()]);
        let (table, listed) = (block_table.spec(), indices.spec());
        let spec =
            SparseAttentionSpec::quantized_paged(q.spec(), entries, table, listed, &lens, scale, out.spec())?;
        Self::bind(spec, &[q, cache, cache_scale, block_table, indices, q_lens.tensor(), out])
    }

    /// Adds a logit without a value to each row's sum.
    ///
    /// # Errors
    /// As [`SparseAttentionSpec::with_sinks`] and [`crate::Call::bind`].
    pub fn sinks(self, sinks: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_sinks(sinks.spec())?, &[("sinks", sinks)])
    }

    /// Also writes the logarithm of each row's sum.
    ///
    /// # Errors
    /// As [`SparseAttentionSpec::with_lse`] and [`crate::Call::bind`].
    pub fn lse(self, lse: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_lse(lse.spec())?, &[("lse", lse)])
    }
}
