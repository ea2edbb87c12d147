//! Attention over a contiguous key-value cache, for a ragged batch of sequences.
//!
//! The query side lies in `query.rs`; the same operator over pages is `paged_attention.rs`.

use super::geometry::{DTYPES, GEOMETRIES, Geometry};
use super::kv_scales::{KvScales, fills, take_cache, visit_cache};
use super::query::{AttentionQuery, CacheExtents};
use super::scores::{VARIANTS, score_attributes};
use super::{AttentionMask, LensSpec};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, OpError, Operand, Result, TensorSpec, Tolerance, expect_rank,
};

const NAME: &str = "attention";

/// Attends to the keys and values of a contiguous cache.
///
/// `out[t, h] = Σ_j softmax_j(scale · ⟨q[t, h], k[b, j, g]⟩) · v[b, j, g]`, `g = h / (num_heads / num_kv_heads)`
///
/// The tokens of the sequences follow one another in q: first `q_lens[0]` rows of sequence 0, then those of
/// sequence 1, and so on. Row t of a sequence sits at position `kv_len − q_len + t`; its mask says which of
/// the keys `0..kv_len` it sees. A row without a visible key gives 0 (lse −∞), and so does a row past the
/// last sequence. A key that its mask hides from a row contributes nothing to it, not even where the key or its
/// value is infinite or not a number. With [`AttentionMask::Full`] the two lengths have nothing to do with each
/// other: cross attention. Soft cap, ALiBi, explicit mask and sinks: see [`crate::attention::AttentionScores`].
///
/// # Shapes
/// q `[tokens, num_heads, head_dim]`, k `[batch, max_len, num_kv_heads, head_dim]`, v
/// `[batch, max_len, num_kv_heads, v_head_dim]`, q_lens and kv_lens `[batch]`, out
/// `[tokens, num_heads, v_head_dim]`, lse `[tokens, num_heads]`. num_heads is a multiple of num_kv_heads. Any
/// extent may be zero. attn_mask `[tokens, num_heads, keys]` with keys at least kv_lens' bound, slopes and sinks
/// `[num_heads]`.
///
/// # DTypes
/// q f32, f16 or bf16; k and v of q's type, or f16 or bf16 beside an f32 q, or i8, f8e4m3 or f8e5m2 with f32 scales
/// ([`crate::attention::KvScales`]). out of q's type or f32. Lengths
/// i32, lse f32. attn_mask bool, f32, f16 or bf16; slopes and sinks f32. Scores and sums in f32; weights may be
/// rounded to q's type.
///
/// # Layout
/// Any strides. Kernels may want the innermost dimension contiguous; other layouts are then composed.
///
/// # Determinism
/// `RunToRun`: same bits for same shapes. `BatchInvariant`: a row depends on its query and its keys only, not
/// on the other rows of the call.
///
/// # Cost
/// `2·(head_dim + v_head_dim)·num_heads` operations for each visible pair of query and key; keys and values
/// visible to any query are read once. From the host's lengths if known, else from their bounds. Steps on scores
/// count as none, their operands' bytes do.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (lengths above what the cache holds, a window
/// of 0). `Data` when a length is negative or above its bound, or when q_lens add up to more than tokens.
///
/// # Source
/// Vaswani et al. 2017; grouped heads: Ainslie et al. 2023; ragged batches as in FlashAttention's `varlen` form.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    query: AttentionQuery,
    k: TensorSpec,
    v: TensorSpec,
    scales: Option<KvScales>,
}

impl AttentionSpec {
    /// Causal attention, scaled by `1/√head_dim`.
    pub fn new(
        q: &TensorSpec,
        k: &TensorSpec,
        v: &TensorSpec,
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked(q, [k, v], None, [q_lens, kv_lens], out)
    }

    /// The same over a cache of codes; k and v each with its scales, one for each position and head.
    pub fn quantized(
        q: &TensorSpec,
        [k, k_scale]: [&TensorSpec; 2],
        [v, v_scale]: [&TensorSpec; 2],
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked(q, [k, v], Some([k_scale, v_scale]), [q_lens, kv_lens], out)
    }

    fn checked(
        q: &TensorSpec,
        [k, v]: [&TensorSpec; 2],
        scales: Option<[&TensorSpec; 2]>,
        [q_lens, kv_lens]: [&LensSpec; 2],
        out: &TensorSpec,
    ) -> Result<Self> {
        expect_rank(NAME, "k", k, 4)?;
        expect_rank(NAME, "v", v, 4)?;
        if k.dims()[..3] != v.dims()[..3] {
            return Err(OpError::shape(
                NAME,
                format!("k is {}, v is {}: they differ before the last dimension", k.shape(), v.shape()),
            ));
        }
        if k.dims()[0] != kv_lens.count() {
            return Err(OpError::shape(
                NAME,
                format!("k is {}, kv_lens has {} sequences", k.shape(), kv_lens.count()),
            ));
        }
        let extents = CacheExtents {
            capacity: k.dims()[1],
            num_kv_heads: k.dims()[2],
            head_dim: k.dims()[3],
            v_head_dim: v.dims()[3],
            scaled: scales.is_some(),
        };
        let scales = scales.map(|scales| KvScales::new(NAME, [k, v], scales)).transpose()?;
        let query = AttentionQuery::new(NAME, q, [k, v], extents, [q_lens, kv_lens], out)?;
        Ok(Self { query, k: *k, v: *v, scales })
    }

    /// The result: contiguous, of q's type.
    pub fn out_spec(q: &TensorSpec, v: &TensorSpec) -> Result<TensorSpec> {
        expect_rank(NAME, "q", q, 3)?;
        expect_rank(NAME, "v", v, 4)?;
        TensorSpec::of(q.dtype(), &[q.dims()[0], q.dims()[1], v.dims()[3]])
    }

    /// Sets which keys a query sees.
    pub fn with_mask(mut self, mask: AttentionMask) -> Result<Self> {
        self.query.set_mask(NAME, mask)?;
        Ok(self)
    }

    /// Sets the factor of the scores.
    pub fn with_scale(mut self, scale: f32) -> Result<Self> {
        self.query.set_scale(NAME, scale)?;
        Ok(self)
    }

    /// Also writes the logarithm of each row's sum of exponentials.
    pub fn with_lse(mut self, lse: &TensorSpec) -> Result<Self> {
        self.query.set_lse(NAME, lse)?;
        Ok(self)
    }

    score_attributes!();

    fn of_geometry(g: &Geometry, [q_type, kv_type, out_type]: [DType; 3]) -> Result<Self> {
        let cache = [g.lens.len(), g.max_len(), g.num_kv_heads];
        let q = TensorSpec::of(q_type, &[g.tokens(), g.num_heads, g.head_dim])?;
        let k = TensorSpec::of(kv_type, &[cache[0], cache[1], cache[2], g.head_dim])?;
        let v = TensorSpec::of(kv_type, &[cache[0], cache[1], cache[2], g.v_head_dim])?;
        let out = TensorSpec::of(out_type, &[g.tokens(), g.num_heads, g.v_head_dim])?;
        let [q_lens, kv_lens] = g.lens(NAME, g.padding == 0)?;
        let spec = Self::new(&q, &k, &v, &q_lens, &kv_lens, &out)?.with_mask(g.mask)?;
        if out_type != DType::F32 {
            return Ok(spec);
        }
        spec.with_lse(&TensorSpec::of(DType::F32, &[g.tokens(), g.num_heads])?)
    }

    /// Query rows, lengths, mask, scale and results.
    pub fn query(&self) -> &AttentionQuery {
        &self.query
    }
    /// Keys.
    pub fn k(&self) -> &TensorSpec {
        &self.k
    }
    /// Values.
    pub fn v(&self) -> &TensorSpec {
        &self.v
    }
    /// Scales of a cache of codes.
    pub fn scales(&self) -> Option<&KvScales> {
        self.scales.as_ref()
    }
}

impl Contract for AttentionSpec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        let query = &self.query;
        visit(Operand { name: "q", spec: &query.q, access: Access::Read });
        visit_cache([&self.k, &self.v], self.scales.as_ref(), visit);
        visit(Operand { name: "q_lens", spec: query.q_lens.device(), access: Access::Read });
        visit(Operand { name: "kv_lens", spec: query.kv_lens.device(), access: Access::Read });
        query.scores.visit(visit);
        visit(Operand { name: "out", spec: &query.out, access: Access::Write });
        if let Some(spec) = &query.lse {
            visit(Operand { name: "lse", spec, access: Access::Write });
        }
    }

    fn cost(&self) -> Cost {
        let scales = if self.scales.is_some() { 2 * DType::F32.bytes_for(1) } else { 0 };
        let entry = self.k.dtype().bytes_for(self.query.head_dim() + self.query.v_head_dim()) + scales;
        self.query.cost(entry as u64, 0)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (max_len, kv_heads) = (self.k.dims()[1], self.k.dims()[2]);
        let row = |b: usize, pos: usize, head: usize| Some((b * max_len + pos) * kv_heads + head);
        let ([k, v], rest) = take_cache([&self.k, &self.v], self.scales.as_ref(), &inputs[1..]);
        self.query.reference(inputs[0], [&k, &v], rest, &row)
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        self.query.tolerance()
    }
}

impl Cases for AttentionSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for (q_type, kv_type, out_type) in DTYPES {
            for g in &GEOMETRIES {
                let base = Self::of_geometry(g, [q_type, kv_type, out_type])?;
                let name = format!("{NAME}/{q_type}_{kv_type}_{out_type}/{}", g.name);
                for variant in
                    VARIANTS.iter().filter(|_| g.scores && (q_type, out_type) != (DType::BF16, DType::F32))
                {
                    let mut spec = base.clone();
                    variant.apply(NAME, &mut spec.query)?;
                    let case = g.case(format!("{name}/{}", variant.name), spec);
                    cases.push(
                        variant.fills().into_iter().fold(case, |case, (arg, fill)| case.fill(arg, fill)),
                    );
                }
                cases.push(g.case(name, base));
            }
        }
        for (q_type, code, out_type) in [
            (DType::F32, DType::I8, DType::F32),
            (DType::BF16, DType::I8, DType::BF16),
            (DType::F16, DType::I8, DType::F32),
            (DType::F32, DType::F8E4M3, DType::F32),
            (DType::BF16, DType::F8E4M3, DType::BF16),
            (DType::F32, DType::F8E5M2, DType::F32),
        ] {
            for g in &GEOMETRIES {
                let plain = Self::of_geometry(g, [q_type, q_type, out_type])?;
                let query = plain.query();
                let [k, v] = [&plain.k, &plain.v].map(|spec| spec.with_dtype(code));
                let own = TensorSpec::of(DType::F32, &k.dims()[..3])?;
                // One scale for all values of a case, one for each key.
                let shared = TensorSpec::of(DType::F32, &[1, 1, 1])?.broadcast_to(own.shape())?;
                let spec = Self::quantized(
                    &query.q,
                    [&k, &own],
                    [&v, if g.scores { &shared } else { &own }],
                    &query.q_lens,
                    &query.kv_lens,
                    &query.out,
                )?;
                let case =
                    g.case(format!("{NAME}/{q_type}_{code}_{out_type}/{}", g.name), spec.with_mask(g.mask)?);
                cases.push(fills(code).into_iter().fold(case, |case, (arg, fill)| case.fill(arg, fill)));
            }
        }
        // q, k and v as slices of one fused projection, and heads outermost in the result.
        for dtype in [DType::F32, DType::BF16] {
            let (tokens, heads, kv_heads, d) = (21, 4, 2, 24);
            let fused = TensorSpec::of(dtype, &[tokens, heads + 2 * kv_heads, d])?;
            let cache = fused.reshape(&[1, tokens, heads + 2 * kv_heads, d])?;
            let lens = TensorSpec::of(DType::I32, &[1])?;
            let lens = |arg| LensSpec::new(NAME, arg, &lens, tokens as u32);
            let spec = Self::new(
                &fused.narrow(1, 0, heads)?,
                &cache.narrow(2, heads, kv_heads)?,
                &cache.narrow(2, heads + kv_heads, kv_heads)?,
                &lens("q_lens")?,
                &lens("kv_lens")?,
                &TensorSpec::of(dtype, &[heads, tokens, d])?.transpose(0, 1)?,
            )?;
            for (name, spec) in [
                ("fused_slices", spec.clone()),
                ("scale", spec.clone().with_scale(-0.3)?),
                ("scale_zero", spec.with_scale(0.0)?),
            ] {
                cases.push(
                    Case::new(format!("{NAME}/{dtype}/{name}"), spec)
                        .fill("q_lens", crate::Fill::Values(vec![tokens as f64]))
                        .fill("kv_lens", crate::Fill::Values(vec![tokens as f64])),
                );
            }
            // No stride is 1: head_dim outermost.
            let q = TensorSpec::of(dtype, &[d, tokens, heads])?.permute(&[1, 2, 0])?;
            let k = TensorSpec::of(dtype, &[d, 1, kv_heads, tokens])?.permute(&[1, 3, 2, 0])?;
            let spec = Self::new(
                &q,
                &k,
                &k,
                &lens("q_lens")?,
                &lens("kv_lens")?,
                &TensorSpec::of(dtype, &[d, tokens, heads])?.permute(&[1, 2, 0])?,
            )?;
            cases.push(
                Case::new(format!("{NAME}/{dtype}/no_unit_stride"), spec)
                    .fill("q_lens", crate::Fill::Values(vec![7.0]))
                    .fill("kv_lens", crate::Fill::Values(vec![tokens as f64])),
            );
        }
        // What is not finite stays with the rows that see it.
        for dtype in [DType::F32, DType::BF16] {
            for (name, mask, q_len, kv_len) in [
                ("causal", AttentionMask::Causal, 70, 70),
                ("window", AttentionMask::Window(9), 70, 70),
                ("few_rows", AttentionMask::Causal, 3, 60),
                ("few_rows_window", AttentionMask::Window(5), 2, 60),
            ] {
                let (heads, kv_heads, d) = (4, 2, 24);
                let q = TensorSpec::of(dtype, &[q_len, heads, d])?;
                let k = TensorSpec::of(dtype, &[1, kv_len, kv_heads, d])?;
                let lens = TensorSpec::of(DType::I32, &[1])?;
                let lens = |arg| LensSpec::new(NAME, arg, &lens, kv_len as u32);
                let spec = Self::new(&q, &k, &k, &lens("q_lens")?, &lens("kv_lens")?, &q)?.with_mask(mask)?;
                let at = |key: usize, head: usize, i: usize| (key * kv_heads + head) * d + i;
                let plain = |i: usize| ((i * 37 + i / 11) % 61) as f64 / 32.0 - 0.95;
                let (mut keys, mut values): (Vec<f64>, Vec<f64>) =
                    (0..kv_len * kv_heads * d).map(|i| (plain(i), plain(i + 17))).unzip();
                keys[at(kv_len - 1, 1, 5)] = f64::NAN;
                values[at(kv_len - 2, 0, 3)] = f64::INFINITY;
                values[at(kv_len - 1, 0, 3)] = f64::NEG_INFINITY;
                values[at(kv_len / 2, 1, 23)] = f64::NAN;
                values[at(kv_len - 8, 0, 7)] = f64::NEG_INFINITY;
                cases.push(
                    Case::new(format!("{NAME}/{dtype}/unseen_{name}"), spec)
                        .fill("k", crate::Fill::Values(keys))
                        .fill("v", crate::Fill::Values(values))
                        .fill("q_lens", crate::Fill::Values(vec![q_len as f64]))
                        .fill("kv_lens", crate::Fill::Values(vec![kv_len as f64])),
                );
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(q: [usize; 3], k: [usize; 4]) -> Result<AttentionSpec> {
        let k = TensorSpec::of(DType::F32, &k)?;
        let lens = TensorSpec::of(DType::I32, &[k.dims()[0]])?;
        let q = TensorSpec::of(DType::F32, &q)?;
        AttentionSpec::new(
            &q,
            &k,
            &k,
            &LensSpec::new(NAME, "q_lens", &lens, 4)?,
            &LensSpec::new(NAME, "kv_lens", &lens, 4)?,
            &AttentionSpec::out_spec(&q, &k)?,
        )
    }

    #[test]
    fn two_keys_by_hand() {
        let s = spec([2, 1, 1], [1, 4, 1, 1]).unwrap();
        let k = [0.0, 2.0f64.ln(), 9.0, 9.0];
        let out = s.reference(&[&[1.0, 1.0], &k, &k, &[2.0], &[2.0]]);
        // Row 0 sees key 0; row 1 weighs keys 0 and 1 as 1 : 2.
        assert_eq!(out[0][0], 0.0);
        assert!((out[0][1] - 2.0 / 3.0 * 2.0f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn rows_without_a_key_give_zero_and_lse_minus_infinity() {
        let s = spec([3, 2, 4], [1, 4, 1, 4]).unwrap();
        let lse = TensorSpec::of(DType::F32, &[3, 2]).unwrap();
        let s = s.with_lse(&lse).unwrap();
        let out = s.reference(&[&[1.0; 24], &[1.0; 16], &[1.0; 16], &[2.0], &[0.0]]);
        assert_eq!(out, [vec![0.0; 24], vec![f64::NEG_INFINITY; 6]]);
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        let e = spec([1, 3, 8], [1, 4, 2, 8]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "attention: q is [1, 3, 8], k is [1, 4, 2, 8]: 3 query heads are not a multiple of 2 key heads"
        );
        assert!(spec([1, 3, 8], [1, 4, 0, 8]).is_err());
        assert!(spec([1, 2, 8], [1, 3, 2, 8]).is_err(), "lengths above what the cache holds");
        assert!(spec([1, 2, 8], [1, 4, 2, 8]).unwrap().with_mask(AttentionMask::Window(0)).is_err());
        assert!(spec([1, 2, 8], [1, 4, 2, 8]).unwrap().with_scale(f32::NAN).is_err());
    }

    #[test]
    fn causal_cost_counts_the_triangle() {
        let (n, h, d) = (2048, 32, 128);
        let q = TensorSpec::of(DType::F32, &[n, h, d]).unwrap();
        let k = TensorSpec::of(DType::F32, &[1, n, h, d]).unwrap();
        let lens = TensorSpec::of(DType::I32, &[1]).unwrap();
        let lens = LensSpec::new(NAME, "q_lens", &lens, n as u32).unwrap();
        let s = AttentionSpec::new(&q, &k, &k, &lens, &lens, &q).unwrap();
        assert_eq!(s.cost().flops, (4 * h * d * n * (n + 1) / 2) as u64);
        assert_eq!(s.cost().bytes_read, (3 * n * h * d * 4 + 8) as u64);
    }

    #[test]
    fn every_case_is_legal() {
        assert!(AttentionSpec::cases().unwrap().len() > 100);
    }
}
