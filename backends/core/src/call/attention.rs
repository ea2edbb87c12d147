//! [`Attention`], [`PagedAttention`] and [`KvCacheWrite`]: what reads and writes a key-value cache.

use super::{Attention, KvCacheWrite, PagedAttention};
use crate::tensor::Tensor;
use crate::weight::Lens;
use portolan_ops::Result;
use portolan_ops::attention::{AttentionMask, AttentionSpec, KvCacheWriteSpec, PagedAttentionSpec};

/// The setters of what may be done to scores, for calls whose spec has them.
macro_rules! score_attributes {
    ($spec:ident) => {
        #[doc = concat!("Bounds the scaled products; see [`", stringify!($spec), "::with_soft_cap`].")]
        ///
        /// # Errors
        /// `Attribute` for a cap that is not above 0.
        pub fn soft_cap(self, cap: f32) -> Result<Self> {
            self.rebind(self.spec().clone().with_soft_cap(cap)?, &[])
        }

        #[doc = concat!("Hides keys or adds to their scores; see [`", stringify!($spec), "::with_attn_mask`].")]
        ///
        /// # Errors
        /// `Shape`, `DType`, and as [`crate::Call::bind`].
        pub fn attn_mask(self, attn_mask: &Tensor) -> Result<Self> {
            self.rebind(self.spec().clone().with_attn_mask(attn_mask.spec())?, &[("attn_mask", attn_mask)])
        }

        #[doc = concat!("Lowers scores with distance; see [`", stringify!($spec), "::with_slopes`].")]
        ///
        /// # Errors
        /// `Shape`, `DType`, and as [`crate::Call::bind`].
        pub fn slopes(self, slopes: &Tensor) -> Result<Self> {
            self.rebind(self.spec().clone().with_slopes(slopes.spec())?, &[("slopes", slopes)])
        }

        #[doc = concat!("Adds a logit without a value; see [`", stringify!($spec), "::with_sinks`].")]
        ///
        /// # Errors
        /// `Shape`, `DType`, and as [`crate::Call::bind`].
        pub fn sinks(self, sinks: &Tensor) -> Result<Self> {
            self.rebind(self.spec().clone().with_sinks(sinks.spec())?, &[("sinks", sinks)])
        }
    };
}
pub(super) use score_attributes;

impl Attention {
    score_attributes!(AttentionSpec);

    /// Attention of ragged queries over a contiguous cache.
    ///
    /// # Errors
    /// As [`AttentionSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        q_lens: &Lens,
        kv_lens: &Lens,
        out: &mut Tensor,
    ) -> Result<Self> {
        let (queries, keys) = (q_lens.spec("attention", "q_lens")?, kv_lens.spec("attention", "kv_lens")?);
        let spec = AttentionSpec::new(q.spec(), k.spec(), v.spec(), &queries, &keys, out.spec())?;
        Self::bind(spec, &[q, k, v, q_lens.tensor(), kv_lens.tensor(), out])
    }

    /// The same over a cache of codes; k and v each with its scales, one for each position and head.
    ///
    /// # Errors
    /// As [`AttentionSpec::quantized`] and [`crate::Call::bind`].
    pub fn quantized(
        q: &Tensor,
        [k, k_scale]: [&Tensor; 2],
        [v, v_scale]: [&Tensor; 2],
        q_lens: &Lens,
        kv_lens: &Lens,
        out: &mut Tensor,
    ) -> Result<Self> {
        const OP: &str = "attention";
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let (k_specs, v_specs) = ([k.spec(), k_scale.spec()], [v.spec(), v_scale.spec()]);
        let spec = AttentionSpec::quantized(q.spec(), k_specs, v_specs, &queries, &keys, out.spec())?;
        Self::bind(spec, &[q, k, v, k_scale, v_scale, q_lens.tensor(), kv_lens.tensor(), out])
    }

    /// Which keys a query sees; causal when not said.
    ///
    /// # Errors
    /// As [`AttentionSpec::with_mask`].
    pub fn mask(self, mask: AttentionMask) -> Result<Self> {
        self.rebind(self.spec().clone().with_mask(mask)?, &[])
    }

    /// Factor of the scores; 1/√head_dim when not said.
    ///
    /// # Errors
    /// As [`AttentionSpec::with_scale`].
    pub fn scale(self, scale: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_scale(scale)?, &[])
    }

    /// Also writes the logarithm of each row's sum.
    ///
    /// # Errors
    /// As [`AttentionSpec::with_lse`] and [`crate::Call::bind`].
    pub fn lse(self, lse: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_lse(lse.spec())?, &[("lse", lse)])
    }
}

impl PagedAttention {
    score_attributes!(PagedAttentionSpec);

    /// Attention of ragged queries over a paged cache.
    ///
    /// # Errors
    /// As [`PagedAttentionSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        block_table: &Tensor,
        q_lens: &Lens,
        kv_lens: &Lens,
        out: &mut Tensor,
    ) -> Result<Self> {
        const OP: &str = "paged_attention";
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let spec = PagedAttentionSpec::new(
            q.spec(),
            k.spec(),
            v.spec(),
            block_table.spec(),
            &queries,
            &keys,
            out.spec(),
        )?;
        Self::bind(spec, &[q, k, v, block_table, q_lens.tensor(), kv_lens.tensor(), out])
    }

    /// The same over a cache of codes; k and v each with its scales, one for each position and head.
    ///
    /// # Errors
    /// As [`PagedAttentionSpec::quantized`] and [`crate::Call::bind`].
    pub fn quantized(
        q: &Tensor,
        [k, k_scale]: [&Tensor; 2],
        [v, v_scale]: [&Tensor; 2],
        block_table: &Tensor,
        q_lens: &Lens,
        kv_lens: &Lens,
        out: &mut Tensor,
    ) -> Result<Self> {
        const OP: &str = "paged_attention";
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let (k_specs, v_specs) = ([k.spec(), k_scale.spec()], [v.spec(), v_scale.spec()]);
        let spec = PagedAttentionSpec::quantized(
            q.spec(),
            k_specs,
            v_specs,
            block_table.spec(),
            &queries,
            &keys,
            out.spec(),
        )?;
        Self::bind(spec, &[q, k, v, k_scale, v_scale, block_table, q_lens.tensor(), kv_lens.tensor(), out])
    }

    /// Which keys a query sees; causal when not said.
    ///
    /// # Errors
    /// As [`PagedAttentionSpec::with_mask`].
    pub fn mask(self, mask: AttentionMask) -> Result<Self> {
        self.rebind(self.spec().clone().with_mask(mask)?, &[])
    }

    /// Factor of the scores; 1/√head_dim when not said.
    ///
    /// # Errors
    /// As [`PagedAttentionSpec::with_scale`].
    pub fn scale(self, scale: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_scale(scale)?, &[])
    }

    /// Also writes the logarithm of each row's sum.
    ///
    /// # Errors
    /// As [`PagedAttentionSpec::with_lse`] and [`crate::Call::bind`].
    pub fn lse(self, lse: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_lse(lse.spec())?, &[("lse", lse)])
    }
}

impl KvCacheWrite {
    /// New rows into a contiguous cache, behind what each sequence has.
    ///
    /// # Errors
    /// As [`KvCacheWriteSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, cache: &mut Tensor, q_lens: &Lens, kv_lens: &Lens) -> Result<Self> {
        const OP: &str = "kv_cache_write";
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let spec = KvCacheWriteSpec::new(x.spec(), cache.spec(), &queries, &keys)?;
        Self::bind(spec, &[x, q_lens.tensor(), kv_lens.tensor(), cache])
    }

    /// New rows into a paged cache.
    ///
    /// # Errors
    /// As [`KvCacheWriteSpec::paged`] and [`crate::Call::bind`].
    pub fn paged(
        x: &Tensor,
        cache: &mut Tensor,
        block_table: &Tensor,
        q_lens: &Lens,
        kv_lens: &Lens,
    ) -> Result<Self> {
        const OP: &str = "kv_cache_write";
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let spec = KvCacheWriteSpec::paged(x.spec(), cache.spec(), block_table.spec(), &queries, &keys)?;
        Self::bind(spec, &[x, block_table, q_lens.tensor(), kv_lens.tensor(), cache])
    }

    /// Codes and scales of new rows into a contiguous cache.
    ///
    /// # Errors
    /// As [`KvCacheWriteSpec::quantized`] and [`crate::Call::bind`].
    pub fn quantized(
        x: &Tensor,
        cache: &mut Tensor,
        scale: &mut Tensor,
        q_lens: &Lens,
        kv_lens: &Lens,
    ) -> Result<Self> {
        const OP: &str = "kv_cache_write";
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let spec = KvCacheWriteSpec::quantized(x.spec(), cache.spec(), scale.spec(), &queries, &keys)?;
        Self::bind(spec, &[x, q_lens.tensor(), kv_lens.tensor(), cache, scale])
    }

    /// Codes and scales of new rows into a paged cache.
    ///
    /// # Errors
    /// As [`KvCacheWriteSpec::quantized_paged`] and [`crate::Call::bind`].
    pub fn quantized_paged(
        x: &Tensor,
        cache: &mut Tensor,
        scale: &mut Tensor,
        block_table: &Tensor,
        q_lens: &Lens,
        kv_lens: &Lens,
    ) -> Result<Self> {
        const OP: &str = "kv_cache_write";
        let (queries, keys) = (q_lens.spec(OP, "q_lens")?, kv_lens.spec(OP, "kv_lens")?);
        let table = block_table.spec();
        let spec =
            KvCacheWriteSpec::quantized_paged(x.spec(), cache.spec(), scale.spec(), table, &queries, &keys)?;
        Self::bind(spec, &[x, block_table, q_lens.tensor(), kv_lens.tensor(), cache, scale])
    }
}
