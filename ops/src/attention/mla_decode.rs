//! Multi-head latent attention in its absorbed form: every head attends to one latent cache.
//!
//! The naive form needs no operator of its own: it is attention with longer keys than values.

use super::geometry::{DTYPES, Geometry, MLA_GEOMETRIES};
use super::kv_scales::{code_fills, expect_scaled, take_entries};
use super::paged_attention::{cache_room, paged_row};
use super::query::{AttentionQuery, CacheExtents};
use super::scores::{VARIANTS, score_attributes};
use super::{AttentionMask, LensSpec};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_rank,
};

const NAME: &str = "mla_decode";

/// Attends to a latent cache that all heads share and whose first columns are also the values.
///
/// `out[t, h] = Σ_j softmax_j(scale · ⟨q[t, h], c[b, j]⟩) · c[b, j, ..rank]`
///
/// The query is absorbed: its first `rank` elements are `W_uk[h]ᵀ · q_nope`, the rest its rotary part; out is
/// still to be multiplied by `W_uv[h]`. Tokens and keys are as in [`crate::attention::AttentionSpec`]: one token a
/// sequence decodes, more prefill or verify a draft. Soft cap, ALiBi, explicit mask and sinks: see
/// [`crate::attention::AttentionScores`].
///
/// # Shapes
/// q `[tokens, num_heads, width]`, cache `[batch, max_len, width]`, or `[num_pages, page_size, width]` with a
/// block_table `[batch, max_pages]`; q_lens and kv_lens `[batch]`, out `[tokens, num_heads, rank]`, rank at most
/// width, lse `[tokens, num_heads]`, cache_scale as cache less its last dimension. Any extent but page_size may be zero.
///
/// # DTypes
/// As for contiguous attention, cache standing for k and v; one scale an entry, for all heads.
///
/// # Layout
/// Any strides. Kernels may want the innermost dimension contiguous; other layouts are then composed.
///
/// # Determinism
/// As for contiguous attention.
///
/// # Cost
/// `2·(width + rank)·num_heads` operations for each visible pair of query and key; visible keys are read once,
/// for all heads and for both uses.
///
/// # Errors
/// As for contiguous and paged attention.
///
/// # Source
/// DeepSeek-AI 2024, DeepSeek-V2 §2.1; the absorbed form as in FlashMLA.
#[derive(Clone, Debug, PartialEq)]
pub struct MlaDecodeSpec {
    query: AttentionQuery,
    cache: TensorSpec,
    cache_scale: Option<TensorSpec>,
    block_table: Option<TensorSpec>,
}

impl MlaDecodeSpec {
    /// Causal attention over a contiguous cache. The scale belongs to the unabsorbed heads, so it has no default:
    /// `1/√(qk_nope_head_dim + qk_rope_head_dim)`, times what the model's position scaling asks for.
    pub fn new(
        q: &TensorSpec,
        cache: &TensorSpec,
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
        scale: f32,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked([q, cache, out], [None, None], [q_lens, kv_lens], scale)
    }

    /// The same over a contiguous cache of codes and its scales, one for each position.
    pub fn quantized(
        q: &TensorSpec,
        [cache, cache_scale]: [&TensorSpec; 2],
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
        scale: f32,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked([q, cache, out], [Some(cache_scale), None], [q_lens, kv_lens], scale)
    }

    /// The same over a paged cache of codes and its scales, one for each position.
    pub fn quantized_paged(
        q: &TensorSpec,
        [cache, cache_scale]: [&TensorSpec; 2],
        block_table: &TensorSpec,
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
        scale: f32,
        out: &TensorSpec,
    ) -> Result<Self> {
        let tables = [Some(cache_scale), Some(block_table)];
        Self::checked([q, cache, out], tables, [q_lens, kv_lens], scale)
    }

    /// Causal attention over a paged cache.
    pub fn paged(
        q: &TensorSpec,
        cache: &TensorSpec,
        block_table: &TensorSpec,
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
        scale: f32,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked([q, cache, out], [None, Some(block_table)], [q_lens, kv_lens], scale)
    }

    fn checked(
        [q, cache, out]: [&TensorSpec; 3],
        [cache_scale, block_table]: [Option<&TensorSpec>; 2],
        lens: [&LensSpec; 2],
        scale: f32,
    ) -> Result<Self> {
        let capacity = cache_room(NAME, ("cache", cache), 3, block_table, ("kv_lens", lens[1]))?;
        expect_rank(NAME, "out", out, 3)?;
        if let Some(cache_scale) = cache_scale {
            expect_scaled(NAME, ["cache", "cache_scale"], cache, cache_scale)?;
        }
        let (width, rank) = (cache.dims()[2], out.dims()[2]);
        if rank > width {
            return Err(OpError::shape(
                NAME,
                format!(
                    "out is {}, cache is {}: rank {rank} is above width {width}",
                    out.shape(),
                    cache.shape()
                ),
            ));
        }
        let scaled = cache_scale.is_some();
        let extents = CacheExtents { capacity, num_kv_heads: 1, head_dim: width, v_head_dim: rank, scaled };
        let mut query = AttentionQuery::new(NAME, q, [cache, cache], extents, lens, out)?;
        query.set_scale(NAME, scale)?;
        Ok(Self {
            query,
            cache: *cache,
            cache_scale: cache_scale.copied(),
            block_table: block_table.copied(),
        })
    }

    /// Sets which keys a query sees.
    pub fn with_mask(mut self, mask: AttentionMask) -> Result<Self> {
        self.query.set_mask(NAME, mask)?;
        Ok(self)
    }

    /// Also writes the logarithm of each row's sum of exponentials.
    pub fn with_lse(mut self, lse: &TensorSpec) -> Result<Self> {
        self.query.set_lse(NAME, lse)?;
        Ok(self)
    }

    score_attributes!();

    /// Query rows, lengths, mask, scale and results; head_dim is width, v_head_dim rank.
    pub fn query(&self) -> &AttentionQuery {
        &self.query
    }
    /// Latent entries.
    pub fn cache(&self) -> &TensorSpec {
        &self.cache
    }
    /// Scales of a cache of codes.
    pub fn cache_scale(&self) -> Option<&TensorSpec> {
        self.cache_scale.as_ref()
    }
    /// Pages of each sequence, of a paged cache.
    pub fn block_table(&self) -> Option<&TensorSpec> {
        self.block_table.as_ref()
    }

    fn of_geometry(g: &Geometry, page_size: Option<usize>, [q, kv, out]: [DType; 3]) -> Result<Self> {
        let q = TensorSpec::of(q, &[g.tokens(), g.num_heads, g.head_dim])?;
        let result = TensorSpec::of(out, &[g.tokens(), g.num_heads, g.v_head_dim])?;
        let [q_lens, kv_lens] = g.lens(NAME, g.padding == 0)?;
        // Of unabsorbed heads with a third of the width.
        let scale = (3.0 / g.head_dim as f32).sqrt();
        let spec = match page_size {
            None => {
                let cache = TensorSpec::of(kv, &[g.lens.len(), g.max_len(), g.head_dim])?;
                Self::new(&q, &cache, &q_lens, &kv_lens, scale, &result)?
            }
            Some(page_size) => {
                let (_, max_pages, num_pages) = g.block_table(page_size);
                let cache = TensorSpec::of(kv, &[num_pages, page_size, g.head_dim])?;
                let table = TensorSpec::of(DType::I32, &[g.lens.len(), max_pages])?;
                Self::paged(&q, &cache, &table, &q_lens, &kv_lens, scale, &result)?
            }
        };
        let spec = spec.with_mask(g.mask)?;
        if out != DType::F32 {
            return Ok(spec);
        }
        spec.with_lse(&TensorSpec::of(DType::F32, &[g.tokens(), g.num_heads])?)
    }
}

impl Contract for MlaDecodeSpec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        let query = &self.query;
        visit(Operand { name: "q", spec: &query.q, access: Access::Read });
        visit(Operand { name: "cache", spec: &self.cache, access: Access::Read });
        if let Some(spec) = &self.cache_scale {
            visit(Operand { name: "cache_scale", spec, access: Access::Read });
        }
        if let Some(spec) = &self.block_table {
            visit(Operand { name: "block_table", spec, access: Access::Read });
        }
        visit(Operand { name: "q_lens", spec: query.q_lens.device(), access: Access::Read });
        visit(Operand { name: "kv_lens", spec: query.kv_lens.device(), access: Access::Read });
        query.scores.visit(visit);
        visit(Operand { name: "out", spec: &query.out, access: Access::Write });
        if let Some(spec) = &query.lse {
            visit(Operand { name: "lse", spec, access: Access::Write });
        }
    }

    fn cost(&self) -> Cost {
        let scale = if self.cache_scale.is_some() { DType::F32.bytes_for(1) } else { 0 };
        let entry = self.cache.dtype().bytes_for(self.cache.dims()[2]) + scale;
        self.query.cost(entry as u64, self.block_table.map_or(0, |table| table.bytes() as u64))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (c, rank) = (self.cache.dims(), self.query.v_head_dim());
        let (entries, rest) = take_entries(&self.cache, self.cache_scale.as_ref(), &inputs[1..]);
        let values: Vec<f64> =
            entries.chunks(c[2].max(1)).flat_map(|entry| &entry[..rank.min(entry.len())]).copied().collect();
        let dims = [c[0], c[1], 1, c[2]];
        let row = |b: usize, pos: usize, _| match &self.block_table {
            Some(table) => paged_row(rest[0], dims, [table.dims()[1], b, pos, 0]),
            None => Some(b * c[1] + pos),
        };
        let lens = if self.block_table.is_some() { &rest[1..] } else { rest };
        self.query.reference(inputs[0], [&entries, &values], lens, &row)
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        self.query.tolerance()
    }
}

impl Cases for MlaDecodeSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for (q_type, kv_type, out_type) in DTYPES {
            for g in &MLA_GEOMETRIES {
                for page_size in [None, Some(16), Some(64), Some(5)] {
                    // Odd pages and large ones once each: the rest of the kernel is the same.
                    if page_size.is_some_and(|size| size != 16) && kv_type != DType::F32 {
                        continue;
                    }
                    let form = page_size.map_or("contiguous".into(), |size| format!("page_{size}"));
                    let name = format!("{NAME}/{q_type}_{kv_type}_{out_type}/{}/{form}", g.name);
                    let base = Self::of_geometry(g, page_size, [q_type, kv_type, out_type])?;
                    let case = |name, spec| {
                        let table = page_size.map_or(Vec::new(), |size| g.block_table(size).0);
                        g.case(name, spec).fill("block_table", Fill::Values(table))
                    };
                    for variant in
                        VARIANTS.iter().filter(|_| g.scores && page_size.is_none() && kv_type == q_type)
                    {
                        let mut spec = base.clone();
                        variant.apply(NAME, &mut spec.query)?;
                        let case = case(format!("{name}/{}", variant.name), spec);
                        cases.push(
                            variant.fills().into_iter().fold(case, |case, (arg, fill)| case.fill(arg, fill)),
                        );
                    }
                    cases.push(case(name, base));
                }
            }
        }
        for (q_type, code, out_type) in [
            (DType::F32, DType::I8, DType::F32),
            (DType::BF16, DType::F8E4M3, DType::BF16),
            (DType::F32, DType::F8E5M2, DType::F32),
        ] {
            for (g, page_size) in MLA_GEOMETRIES.iter().flat_map(|g| [(g, None), (g, Some(16))]) {
                let plain = Self::of_geometry(g, page_size, [q_type, q_type, out_type])?;
                let (query, scale) = (&plain.query, plain.query.scale);
                let cache = plain.cache.with_dtype(code);
                let own = TensorSpec::of(DType::F32, &cache.dims()[..2])?;
                let (q, out, lens) = (&query.q, &query.out, [&query.q_lens, &query.kv_lens]);
                let (form, spec) = match &plain.block_table {
                    None => ("contiguous", Self::quantized(q, [&cache, &own], lens[0], lens[1], scale, out)?),
                    Some(table) => {
                        let cache = [&cache, &own];
                        ("paged", Self::quantized_paged(q, cache, table, lens[0], lens[1], scale, out)?)
                    }
                };
                let [codes, scales] = code_fills(code);
                let name = format!("{NAME}/{q_type}_{code}_{out_type}/{}/{form}", g.name);
                cases.push(
                    g.case(name, spec.with_mask(g.mask)?)
                        .fill(
                            "block_table",
                            Fill::Values(page_size.map_or(Vec::new(), |size| g.block_table(size).0)),
                        )
                        .fill("cache", codes)
                        .fill("cache_scale", scales),
                );
            }
        }
        // Entries as columns of a wider row, and a query whose heads lie outside of its tokens.
        let lens = TensorSpec::of(DType::I32, &[2])?;
        let lens = |arg, max| LensSpec::new(NAME, arg, &lens, max);
        let q = TensorSpec::of(DType::F32, &[9, 3, 20])?.transpose(0, 1)?;
        let cache = TensorSpec::of(DType::BF16, &[2, 30, 33])?.narrow(2, 5, 20)?;
        let out = TensorSpec::of(DType::F32, &[12, 3, 9])?.permute(&[1, 2, 0])?;
        let spec = Self::new(&q, &cache, &lens("q_lens", 3)?, &lens("kv_lens", 30)?, 0.25, &out)?;
        cases.push(
            Case::new(format!("{NAME}/strided"), spec)
                .fill("q_lens", Fill::Values(vec![2.0, 1.0]))
                .fill("kv_lens", Fill::Values(vec![30.0, 17.0])),
        );
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::AttentionSpec;

    fn spec(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    #[test]
    fn it_is_attention_with_one_key_head_whose_values_are_the_keys_first_columns() {
        let (q, cache) = (spec(DType::F32, &[2, 3, 5]), spec(DType::F32, &[1, 4, 5]));
        let out = spec(DType::F32, &[2, 3, 2]);
        let lens = LensSpec::new(NAME, "lens", &spec(DType::I32, &[1]), 4).unwrap();
        let mla = MlaDecodeSpec::new(&q, &cache, &lens, &lens, 0.5, &out).unwrap();
        let [k, v] = [5, 2].map(|width| spec(DType::F32, &[1, 4, 1, width]));
        let plain = AttentionSpec::new(&q, &k, &v, &lens, &lens, &out).unwrap().with_scale(0.5).unwrap();
        let (queries, entries) = (Fill::Unit.draw(&q, 1), Fill::Unit.draw(&cache, 2));
        let values: Vec<f64> = entries.chunks(5).flat_map(|e| e[..2].to_vec()).collect();
        let want = plain.reference(&[&queries, &entries, &values, &[2.0], &[4.0]]);
        assert_eq!(mla.reference(&[&queries, &entries, &[2.0], &[4.0]]), want);
    }

    #[test]
    fn every_entry_is_read_once_for_all_heads_and_both_uses() {
        let (q, cache) = (spec(DType::BF16, &[1, 128, 576]), spec(DType::BF16, &[1, 8192, 576]));
        let one = LensSpec::new(NAME, "lens", &spec(DType::I32, &[1]), 1).unwrap();
        let cached = LensSpec::new(NAME, "lens", &spec(DType::I32, &[1]), 8192).unwrap();
        let out = spec(DType::BF16, &[1, 128, 512]);
        let cost = MlaDecodeSpec::new(&q, &cache, &one, &cached, 0.1, &out).unwrap().cost();
        assert_eq!(cost.flops, 2 * (576 + 512) * 128 * 8192);
        assert_eq!(cost.bytes_read, 8192 * 576 * 2 + 128 * 576 * 2 + 8);
    }

    #[test]
    fn a_rank_above_the_width_is_refused() {
        let (q, cache) = (spec(DType::F32, &[1, 2, 5]), spec(DType::F32, &[1, 4, 5]));
        let lens = LensSpec::new(NAME, "lens", &spec(DType::I32, &[1]), 4).unwrap();
        let e = MlaDecodeSpec::new(&q, &cache, &lens, &lens, 0.5, &spec(DType::F32, &[1, 2, 6])).unwrap_err();
        assert_eq!(
            e.to_string(),
            "mla_decode: out is [1, 2, 6], cache is [1, 4, 5]: rank 6 is above width 5"
        );
    }

    #[test]
    fn every_case_is_legal() {
        assert!(MlaDecodeSpec::cases().unwrap().len() > 100);
    }
}
