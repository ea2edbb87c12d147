//! [`IndexLogits`]: how much each token wants each key.

use super::IndexLogits;
use crate::tensor::Tensor;
use crate::weight::Lens;
use portolan_ops::Result;
use portolan_ops::attention::IndexLogitsSpec;

const OP: &str = "index_logits";

impl IndexLogits {
    /// Logits over a contiguous cache of keys; lens are q_lens and kv_lens.
    ///
    /// # Errors
    /// As [`IndexLogitsSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        q: &Tensor,
        k: &Tensor,
        weights: &Tensor,
        lens: [&Lens; 2],
        ratio: u32,
        logits: &mut Tensor,
    ) -> Result<Self> {
        let specs = [lens[0].spec(OP, "q_lens")?, lens[1].spec(OP, "kv_lens")?];
        let [q_lens, kv_lens] = &specs;
        let spec = IndexLogitsSpec::new(
            q.spec(),
            k.spec(),
            weights.spec(),
            [q_lens, kv_lens],
            ratio,
            logits.spec(),
        )?;
        Self::bind(spec, &[q, k, weights, lens[0].tensor(), lens[1].tensor(), logits])
    }

    /// Logits over a contiguous cache of codes and its scales, one for each key.
    ///
    /// # Errors
    /// As [`IndexLogitsSpec::quantized`] and [`crate::Call::bind`].
    pub fn quantized(
        q: &Tensor,
        [k, k_scale]: [&Tensor; 2],
        weights: &Tensor,
        lens: [&Lens; 2],
        ratio: u32,
        logits: &mut Tensor,
    ) -> Result<Self> {
        let specs = [lens[0].spec(OP, "q_lens")?, lens[1].spec(OP, "kv_lens")?];
        let ([q_lens, kv_lens], keys) = (&specs, [k.spec(), k_scale.spec()]);
        let lengths = [q_lens, kv_lens];
        let spec = IndexLogitsSpec::quantized(q.spec(), keys, weights.spec(), lengths, ratio, logits.spec())?;
        Self::bind(spec, &[q, k, k_scale, weights, lens[0].tensor(), lens[1].tensor(), logits])
    }

    /// Logits over a paged cache of codes and its scales, one for each key.
    ///
    /// # Errors
    /// As [`IndexLogitsSpec::quantized_paged`] and [`crate::Call::bind`].
    pub fn quantized_paged(
        q: &Tensor,
        [k, k_scale]: [&Tensor; 2],
        block_table: &Tensor,
        weights: &Tensor,
        lens: [&Lens; 2],
        ratio: u32,
        logits: &mut Tensor,
    ) -> Result<Self> {
        let specs = [lens[0].spec(OP, "q_lens")?, lens[1].spec(OP, "kv_lens")?];
        let ([q_lens, kv_lens], keys) = (&specs, [k.spec(), k_scale.spec()]);
        let spec = IndexLogitsSpec::quantized_paged(
            q.spec(),
            keys,
            block_table.spec(),
            weights.spec(),
            [q_lens, kv_lens],
            ratio,
            logits.spec(),
        )?;
        Self::bind(spec, &[q, k, k_scale, block_table, weights, lens[0].tensor(), lens[1].tensor(), logits])
    }

    /// Logits over a paged cache of keys; lens are q_lens and kv_lens.
    ///
    /// # Errors
    /// As [`IndexLogitsSpec::paged`] and [`crate::Call::bind`].
    pub fn paged(
        q: &Tensor,
        k: &Tensor,
        block_table: &Tensor,
        weights: &Tensor,
        lens: [&Lens; 2],
        ratio: u32,
        logits: &mut Tensor,
    ) -> Result<Self> {
        let specs = [lens[0].spec(OP, "q_lens")?, lens[1].spec(OP, "kv_lens")?];
        let [q_lens, kv_lens] = &specs;
        let spec = IndexLogitsSpec::paged(
            q.spec(),
            k.spec(),
            block_table.spec(),
            weights.spec(),
            [q_lens, kv_lens],
            ratio,
            logits.spec(),
        )?;
        Self::bind(spec, &[q, k, block_table, weights, lens[0].tensor(), lens[1].tensor(), logits])
    }
}
