//! The query side of attention: what the contiguous and the paged operator share.
//!
//! Query rows of a ragged batch, which keys each may see, the scale, and the results. Where keys lie is the
//! business of each operator's own file, what else is done to scores that of `scores.rs`.

use super::LensSpec;
use super::scores::{AttentionScores, ScoreValues};
use crate::{
    Cost, DType, OpError, Result, TensorSpec, Tolerance, expect_dims, expect_dtype, expect_rank,
    expect_writable,
};
use core::ops::Range;

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum AttentionMask {
    /// Every key of its sequence.
    Full,
    /// The keys up to its own position.
    #[default]
    Causal,
    /// The last so many keys up to its own position (at least 1).
    Window(u32),
}

impl AttentionMask {
    /// The keys that query `t` of `q_len` sees among `kv_len`; its position is `kv_len − q_len + t`.
    pub fn visible(self, t: usize, q_len: usize, kv_len: usize) -> Range<usize> {
        let end = (kv_len + t + 1).saturating_sub(q_len).min(kv_len);
        match self {
            AttentionMask::Full => 0..kv_len,
            AttentionMask::Causal => 0..end,
            AttentionMask::Window(window) => end.saturating_sub(window as usize)..end,
        }
    }

    /// The keys that at least one of `q_len` queries sees.
    pub fn visible_to_any(self, q_len: usize, kv_len: usize) -> Range<usize> {
        if q_len == 0 || kv_len == 0 {
            return 0..0;
        }
        // The first row with a visible key: earlier ones lie before the sequence's start.
        let first = if self == AttentionMask::Full { 0 } else { q_len.saturating_sub(kv_len) };
        self.visible(first, q_len, kv_len).start..kv_len
    }

    /// Number of visible (query, key) pairs.
    pub fn pairs(self, q_len: u64, kv_len: u64) -> u128 {
        let (q, kv) = (u128::from(q_len), u128::from(kv_len));
        // Σ min(x, window) over x from kv − rows + 1 to kv, x being the number of keys up to a row's position.
        let rows = q.min(kv);
        let sum = |from: u128, to: u128| if to < from { 0 } else { (from + to) * (to - from + 1) / 2 };
        match self {
            AttentionMask::Full => q * kv,
            AttentionMask::Causal => sum(kv - rows + 1, kv),
            AttentionMask::Window(window) => {
                let window = u128::from(window);
                let capped = kv - (kv - rows).max(window).min(kv);
                sum(kv - rows + 1, kv.min(window)) + window * capped
            }
        }
    }
}

/// Query rows, lengths, mask, scale and results of an attention operator.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionQuery {
    pub(super) q: TensorSpec,
    pub(super) q_lens: LensSpec,
    pub(super) kv_lens: LensSpec,
    pub(super) out: TensorSpec,
    pub(super) lse: Option<TensorSpec>,
    pub(super) mask: AttentionMask,
    pub(super) scale: f32,
    pub(super) scores: AttentionScores,
    pub(super) num_kv_heads: usize,
    v_head_dim: usize,
    capacity: usize,
    scaled: bool,
}

/// The four extents that say how much room keys and values have.
pub(super) struct CacheExtents {
    pub(super) capacity: usize,
    pub(super) num_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) v_head_dim: usize,
    /// Whether the entries are codes with scales, whose types were checked.
    pub(super) scaled: bool,
}

impl AttentionQuery {
    pub(super) fn new(
        op: &'static str,
        q: &TensorSpec,
        [k, v]: [&TensorSpec; 2],
        cache: CacheExtents,
        [q_lens, kv_lens]: [&LensSpec; 2],
        out: &TensorSpec,
    ) -> Result<Self> {
        expect_rank(op, "q", q, 3)?;
        expect_dtype(op, "q", q, &[DType::F32, DType::F16, DType::BF16])?;
        let narrow = q.dtype() == DType::F32 && matches!(k.dtype(), DType::F16 | DType::BF16);
        if k.dtype() != q.dtype() && !narrow && !cache.scaled {
            return Err(OpError::dtype(op, "k", k.dtype(), format!("{} or narrower", q.dtype())));
        }
        expect_dtype(op, "v", v, &[k.dtype()])?;
        let (tokens, num_heads, head_dim) = (q.dims()[0], q.dims()[1], q.dims()[2]);
        if head_dim != cache.head_dim {
            return Err(OpError::shape(
                op,
                format!(
                    "q is {}, k is {}: head_dim differs ({head_dim} vs {})",
                    q.shape(),
                    k.shape(),
                    cache.head_dim
                ),
            ));
        }
        if num_heads != 0 && (cache.num_kv_heads == 0 || num_heads % cache.num_kv_heads != 0) {
            return Err(OpError::shape(
                op,
                format!(
                    "q is {}, k is {}: {num_heads} query heads are not a multiple of {} key heads",
                    q.shape(),
                    k.shape(),
                    cache.num_kv_heads
                ),
            ));
        }
        if q_lens.count() != kv_lens.count() {
            return Err(OpError::shape(
                op,
                format!("q_lens has {} sequences, kv_lens {}", q_lens.count(), kv_lens.count()),
            ));
        }
        if kv_lens.max() as usize > cache.capacity {
            return Err(OpError::attribute(
                op,
                "kv_lens",
                format!("may reach {}, the cache holds {}", kv_lens.max(), cache.capacity),
            ));
        }
        q_lens.expect_fit(op, "q_lens", tokens)?;
        expect_dims(op, "out", out, &[tokens, num_heads, cache.v_head_dim])?;
        expect_dtype(op, "out", out, &[q.dtype(), DType::F32])?;
        expect_writable(op, "out", out)?;
        Ok(Self {
            q: *q,
            q_lens: q_lens.clone(),
            kv_lens: kv_lens.clone(),
            out: *out,
            lse: None,
            mask: AttentionMask::Causal,
            scale: (1.0 / (head_dim.max(1) as f64).sqrt()) as f32,
            scores: AttentionScores::default(),
            num_kv_heads: cache.num_kv_heads,
            v_head_dim: cache.v_head_dim,
            capacity: cache.capacity,
            scaled: cache.scaled,
        })
    }

    pub(super) fn set_mask(&mut self, op: &'static str, mask: AttentionMask) -> Result<()> {
        if mask == AttentionMask::Window(0) {
            return Err(OpError::attribute(
                op,
                "window",
                "is 0, at least 1 is needed for a row to see itself",
            ));
        }
        self.mask = mask;
        Ok(())
    }

    pub(super) fn set_scale(&mut self, op: &'static str, scale: f32) -> Result<()> {
        if !scale.is_finite() {
            return Err(OpError::attribute(op, "scale", format!("is {scale}, expected a finite number")));
        }
        self.scale = scale;
        Ok(())
    }

    pub(super) fn set_lse(&mut self, op: &'static str, lse: &TensorSpec) -> Result<()> {
        expect_dims(op, "lse", lse, &[self.tokens(), self.num_heads()])?;
        expect_dtype(op, "lse", lse, &[DType::F32])?;
        expect_writable(op, "lse", lse)?;
        self.lse = Some(*lse);
        Ok(())
    }

    pub(super) fn set_soft_cap(&mut self, op: &'static str, cap: f32) -> Result<()> {
        self.scores.set_soft_cap(op, cap)
    }

    pub(super) fn set_attn_mask(&mut self, op: &'static str, mask: &TensorSpec) -> Result<()> {
        let extents = [self.tokens(), self.num_heads(), self.kv_lens.max() as usize];
        self.scores.set_attn_mask(op, mask, extents)
    }

    pub(super) fn set_slopes(&mut self, op: &'static str, slopes: &TensorSpec) -> Result<()> {
        self.scores.set_slopes(op, slopes, self.num_heads())
    }

    pub(super) fn set_sinks(&mut self, op: &'static str, sinks: &TensorSpec) -> Result<()> {
        self.scores.set_sinks(op, sinks, self.num_heads())
    }

    /// Queries.
    pub fn q(&self) -> &TensorSpec {
        &self.q
    }
    /// Tokens of each sequence in this call.
    pub fn q_lens(&self) -> &LensSpec {
        &self.q_lens
    }
    /// Keys of each sequence, this call's included.
    pub fn kv_lens(&self) -> &LensSpec {
        &self.kv_lens
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Natural logarithm of the sum of exponentials of each row's scores.
    pub fn lse(&self) -> Option<&TensorSpec> {
        self.lse.as_ref()
    }
    /// Which keys a query sees.
    pub fn mask(&self) -> AttentionMask {
        self.mask
    }
    /// Factor of the scores.
    pub fn scale(&self) -> f32 {
        self.scale
    }
    /// What is done to the scores besides.
    pub fn scores(&self) -> &AttentionScores {
        &self.scores
    }
    /// Number of query rows.
    pub fn tokens(&self) -> usize {
        self.q.dims()[0]
    }
    /// Number of query heads.
    pub fn num_heads(&self) -> usize {
        self.q.dims()[1]
    }
    /// Number of key and value heads.
    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }
    /// Length of a query and of a key.
    pub fn head_dim(&self) -> usize {
        self.q.dims()[2]
    }
    /// Length of a value.
    pub fn v_head_dim(&self) -> usize {
        self.v_head_dim
    }
    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.q_lens.count()
    }
    /// Keys one sequence has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Operations and bytes of the visible pairs; `entry` is the bytes that one position of one key head takes
    /// in the cache. Without lengths on the host: as many sequences of the greatest lengths as there are tokens
    /// for.
    pub(super) fn cost(&self, entry: u64, extra_read: u64) -> Cost {
        let (mut pairs, mut keys) = (0u128, 0u128);
        let mut add = |count: u64, q_len: u64, kv_len: u64| {
            let seen = self.mask.visible_to_any(q_len as usize, kv_len as usize).len() as u128;
            pairs = pairs.saturating_add(self.mask.pairs(q_len, kv_len).saturating_mul(u128::from(count)));
            keys = keys.saturating_add(seen.saturating_mul(u128::from(count)));
        };
        if self.q_lens.host().is_some() || self.kv_lens.host().is_some() {
            let mut left = self.tokens() as u64;
            for b in 0..self.batch() {
                let q_len = u64::from(self.q_lens.bound(b)).min(left);
                left -= q_len;
                add(1, q_len, u64::from(self.kv_lens.bound(b)));
            }
        } else {
            let (tokens, q_max, kv_max) =
                (self.tokens() as u64, u64::from(self.q_lens.max()), u64::from(self.kv_lens.max()));
            let whole = tokens.checked_div(q_max).unwrap_or(0).min(self.batch() as u64);
            add(whole, q_max, kv_max);
            if whole < self.batch() as u64 {
                add(1, (tokens - whole * q_max).min(q_max), kv_max);
            }
        }
        let width = (self.head_dim() + self.v_head_dim()) as u128;
        let clamp = |x: u128| u64::try_from(x).unwrap_or(u64::MAX);
        let cache_bytes = keys.saturating_mul(self.num_kv_heads as u128).saturating_mul(u128::from(entry));
        let lens = (self.q_lens.device().bytes() + self.kv_lens.device().bytes()) as u64;
        Cost {
            flops: clamp(pairs.saturating_mul(2 * width).saturating_mul(self.num_heads() as u128)),
            bytes_read: clamp(cache_bytes)
                .saturating_add(self.q.bytes() as u64)
                .saturating_add(lens)
                .saturating_add(self.scores.bytes())
                .saturating_add(extra_read),
            bytes_written: (self.out.bytes() as u64)
                .saturating_add(self.lse.map_or(0, |lse| lse.bytes() as u64)),
            bytes_comm: 0,
        }
    }

    /// The operator in f64. `row(b, pos, kv_head)` is the row of `k` and `v` that holds a key, `None` where
    /// a fault hides it; `rest` are the inputs from q_lens on. Lengths out of range are clamped: what a faulty
    /// call gives is not defined.
    pub(super) fn reference(
        &self,
        q: &[f64],
        [k, v]: [&[f64]; 2],
        rest: &[&[f64]],
        row: &dyn Fn(usize, usize, usize) -> Option<usize>,
    ) -> Vec<Vec<f64>> {
        let (heads, d, dv) = (self.num_heads(), self.head_dim(), self.v_head_dim());
        let (q_lens, kv_lens, values) = (rest[0], rest[1], self.scores.values(&rest[2..]));
        let group = heads.checked_div(self.num_kv_heads).unwrap_or(1);
        let mut out = vec![0.0; self.tokens() * heads * dv];
        let mut lse = vec![f64::NEG_INFINITY; self.tokens() * heads];
        let mut token = 0;
        for b in 0..self.batch() {
            let q_len = (q_lens[b].max(0.0) as usize).min(self.tokens() - token);
            let kv_len = (kv_lens[b].max(0.0) as usize).min(self.capacity);
            for t in 0..q_len {
                for head in 0..heads {
                    let at = (token + t) * heads + head;
                    let position = (kv_len + t) as f64 - q_len as f64;
                    let mut keys = Vec::new();
                    for pos in self.mask.visible(t, q_len, kv_len) {
                        let Some(r) = row(b, pos, head / group) else { continue };
                        let dot: f64 = (0..d).map(|i| q[at * d + i] * k[r * d + i]).sum();
                        let product = f64::from(self.scale) * dot;
                        let distance = position - pos as f64;
                        if let Some(score) = self.scores.score(&values, [at, head, pos], distance, product) {
                            keys.push((score, &v[r * dv..(r + 1) * dv]));
                        }
                    }
                    lse[at] = softmax_mean(&keys, &values, head, &mut out[at * dv..(at + 1) * dv]);
                }
            }
            token += q_len;
        }
        if self.lse.is_some() { vec![out, lse] } else { vec![out] }
    }

    pub(super) fn tolerance(&self) -> Vec<Tolerance> {
        let keys = self.kv_lens.host().map_or(self.kv_lens.max(), |l| l.iter().copied().max().unwrap_or(0));
        let products = (self.head_dim(), f64::from(self.scale.abs()));
        let types = [self.q.dtype(), self.out.dtype()];
        let [out, lse] = attend_tolerance(types, products, f64::from(keys), &self.scores, self.scaled);
        if self.lse.is_some() { vec![out, lse] } else { vec![out] }
    }
}

/// Of a result and its lse. With factors in [−1, 1], `u` the f32 roundoff, `d` = head_dim and `n` keys:
///
/// * a score errs by at most `2·(d + 8)·u·|scale|` (a sum of d products of at most 1, as for gemm), and
///   a weight `e^(s − max)` by that, relative, plus 8 u for the exponential and its argument;
/// * a weighted mean of values in [−1, 1] moves by at most twice the relative error of its weights;
/// * the two sums over keys (weights; weighted values) have partial sums of at most their totals, so n
///   independent roundings add about √n·u each; we allow 4 √n u for each;
/// * weights may be rounded to q's type before they meet the values: at most that type's roundoff;
/// * one rounding to the result's type.
///
/// lse moves by a score's error plus 4 √n u of its sum, and is rounded once. What else is done to the scores
/// adds to their error as [`AttentionScores`] says where it derives it. Where entries are `scale · code`, each is
/// rounded once, which moves a score by at most `d·u·|scale|` (of both its sides of a weight) and a mean by u.
pub(super) fn attend_tolerance(
    [q, out]: [DType; 2],
    (head_dim, scale): (usize, f64),
    keys: f64,
    scores: &AttentionScores,
    scaled: bool,
) -> [Tolerance; 2] {
    let (u, d) = (DType::F32.unit_roundoff(), head_dim as f64);
    let score = 2.0 * (d + 8.0) * u * scale + scores.error(d * scale, keys);
    let sums = 4.0 * keys.sqrt() * u;
    let weights = if q == DType::F32 { 0.0 } else { q.unit_roundoff() };
    let mut out = Tolerance::rounded_to(out, 2.0 * (score + 8.0 * u) + 2.0 * sums + weights);
    let mut lse = Tolerance { abs: score + sums + 8.0 * u, rel: 2.0 * u };
    if scaled {
        out.abs += 2.0 * d * scale * u + u;
        lse.abs += d * scale * u;
    }
    [out, lse]
}

/// Adds the mean of values, weighted by the exponentials of their scores, to `out`, which is 0 before; gives the
/// logarithm of the sum of weights, the head's sink among them.
pub(super) fn softmax_mean(
    keys: &[(f64, &[f64])],
    values: &ScoreValues<'_>,
    head: usize,
    out: &mut [f64],
) -> f64 {
    let sink = values.sinks.map_or(f64::NEG_INFINITY, |sinks| sinks[head]);
    let max = keys.iter().map(|(score, _)| *score).fold(sink, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    let sum = keys.iter().map(|(score, _)| (score - max).exp()).sum::<f64>() + (sink - max).exp();
    for (score, value) in keys {
        let p = (score - max).exp() / sum;
        out.iter_mut().zip(*value).for_each(|(out, value)| *out += p * value);
    }
    max + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pairs_and_ranges_count_what_is_visible(q_len in 0usize..20, kv_len in 0usize..20, w in 1u32..24) {
            for mask in [AttentionMask::Full, AttentionMask::Causal, AttentionMask::Window(w)] {
                let mut seen = vec![false; kv_len];
                let mut pairs = 0;
                for t in 0..q_len {
                    let position = kv_len as i64 - q_len as i64 + t as i64;
                    let range = mask.visible(t, q_len, kv_len);
                    for (key, seen) in seen.iter_mut().enumerate() {
                        let wanted = match mask {
                            AttentionMask::Full => true,
                            AttentionMask::Causal => key as i64 <= position,
                            AttentionMask::Window(w) => {
                                key as i64 <= position && key as i64 > position - i64::from(w)
                            }
                        };
                        prop_assert_eq!(range.contains(&key), wanted);
                        *seen |= wanted;
                        pairs += u128::from(wanted);
                    }
                }
                prop_assert_eq!(mask.pairs(q_len as u64, kv_len as u64), pairs);
                prop_assert_eq!(
                    mask.visible_to_any(q_len, kv_len).len(), seen.iter().filter(|s| **s).count()
                );
            }
        }
    }
}
