//! Sparse attention: every token attends to the entries of a latent cache that its own list names.
//!
//! Lists come from `index_logits.rs` and top-k; over all keys the operator is `mla_decode.rs`.

use super::LensSpec;
use super::geometry::{DTYPES, Geometry, MLA_GEOMETRIES};
use super::kv_scales::{code_fills, expect_scaled, take_entries};
use super::paged_attention::{cache_room, paged_row};
use super::query::{attend_tolerance, softmax_mean};
use super::scores::AttentionScores;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_rank, expect_writable,
};

const NAME: &str = "sparse_attention";

/// Attends to listed entries of a latent cache that all heads share and whose first columns are also the values.
///
/// `out[t, h] = Σ_i p_i · c[b, indices[t, i], ..rank]`, `p = softmax_i(scale · ⟨q[t, h], c[b, indices[t, i]]⟩)`
///
/// b is the sequence of token t: first `q_lens[0]` tokens of sequence 0, then those of sequence 1, and so on. An
/// index is a position in that sequence; below zero it is padding and names nothing; named twice, an entry counts
/// twice. A token whose list is empty, and one past the last sequence, gives 0 (lse −∞, or the sink where there is
/// one in a sequence). Sinks join each row's sum only, as in [`crate::attention::AttentionScores`].
///
/// A pool of entries without sequences is the case of one sequence that has all tokens.
///
/// # Shapes
/// q `[tokens, num_heads, width]`, cache `[batch, max_len, width]`, or `[num_pages, page_size, width]` with a
/// block_table `[batch, max_pages]`; indices `[tokens, top_k]`, q_lens `[batch]`, sinks `[num_heads]`, out
/// `[tokens, num_heads, rank]`, rank at most width, lse `[tokens, num_heads]`, cache_scale as cache less its last
/// dimension. Any extent but page_size may be zero.
///
/// # DTypes
/// q f32, f16 or bf16; cache of q's type, or f16 or bf16 beside an f32 q, or i8, f8e4m3 or f8e5m2 with f32 scales;
/// out of q's type or f32; indices, q_lens and block_table i32; sinks and lse f32. Scores and sums in f32; weights may be rounded to q's type.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// `BatchInvariant`: a row depends on its query and its list, in the list's order.
///
/// # Cost
/// `2·(width + rank)·num_heads` operations for each index, padding included; every entry read at most once.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (a result overlaps itself), `Attribute`. `Data` when an index is past what a
/// sequence has room for or in an absent page, when a length is negative or above its bound, or when q_lens add
/// up to more than tokens.
///
/// # Source
/// DeepSeek-AI 2025, DeepSeek-V3.2 (sparse attention); sinks as in gpt-oss.
#[derive(Clone, Debug, PartialEq)]
pub struct SparseAttentionSpec {
    q: TensorSpec,
    cache: TensorSpec,
    cache_scale: Option<TensorSpec>,
    block_table: Option<TensorSpec>,
    indices: TensorSpec,
    q_lens: LensSpec,
    scale: f32,
    scores: AttentionScores,
    out: TensorSpec,
    lse: Option<TensorSpec>,
    capacity: usize,
}

impl SparseAttentionSpec {
    /// Over a contiguous cache.
    pub fn new(
        q: &TensorSpec,
        cache: &TensorSpec,
        indices: &TensorSpec,
        q_lens: &LensSpec,
        scale: f32,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked([q, cache, indices, out], [None, None], q_lens, scale)
    }

    /// Over a contiguous cache of codes and its scales, one for each position.
    pub fn quantized(
        q: &TensorSpec,
        [cache, cache_scale]: [&TensorSpec; 2],
        indices: &TensorSpec,
        q_lens: &LensSpec,
        scale: f32,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked([q, cache, indices, out], [Some(cache_scale), None], q_lens, scale)
    }

    /// Over a paged cache of codes and its scales, one for each position.
    pub fn quantized_paged(
        q: &TensorSpec,
        [cache, cache_scale]: [&TensorSpec; 2],
        block_table: &TensorSpec,
        indices: &TensorSpec,
        q_lens: &LensSpec,
        scale: f32,
        out: &TensorSpec,
    ) -> Result<Self> {
        let tables = [Some(cache_scale), Some(block_table)];
        Self::checked([q, cache, indices, out], tables, q_lens, scale)
    }

    /// Over a paged cache.
    pub fn paged(
        q: &TensorSpec,
        cache: &TensorSpec,
        block_table: &TensorSpec,
        indices: &TensorSpec,
        q_lens: &LensSpec,
        scale: f32,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked([q, cache, indices, out], [None, Some(block_table)], q_lens, scale)
    }

    fn checked(
        [q, cache, indices, out]: [&TensorSpec; 4],
        [cache_scale, block_table]: [Option<&TensorSpec>; 2],
        q_lens: &LensSpec,
        scale: f32,
    ) -> Result<Self> {
        let capacity = cache_room(NAME, ("cache", cache), 3, block_table, ("q_lens", q_lens))?;
        expect_rank(NAME, "q", q, 3)?;
        expect_dtype(NAME, "q", q, &[DType::F32, DType::F16, DType::BF16])?;
        let narrow = q.dtype() == DType::F32 && matches!(cache.dtype(), DType::F16 | DType::BF16);
        if let Some(cache_scale) = cache_scale {
            expect_scaled(NAME, ["cache", "cache_scale"], cache, cache_scale)?;
        } else if cache.dtype() != q.dtype() && !narrow {
            return Err(OpError::dtype(NAME, "cache", cache.dtype(), format!("{} or narrower", q.dtype())));
        }
        let (tokens, heads, width) = (q.dims()[0], q.dims()[1], q.dims()[2]);
        expect_rank(NAME, "indices", indices, 2)?;
        expect_dims(NAME, "indices", indices, &[tokens, indices.dims()[1]])?;
        expect_dtype(NAME, "indices", indices, &[DType::I32])?;
        expect_rank(NAME, "out", out, 3)?;
        expect_dims(NAME, "out", out, &[tokens, heads, out.dims()[2]])?;
        expect_dtype(NAME, "out", out, &[q.dtype(), DType::F32])?;
        expect_writable(NAME, "out", out)?;
        if cache.dims()[2] != width || out.dims()[2] > width {
            return Err(OpError::shape(
                NAME,
                format!(
                    "q is {}, cache is {}, out is {}: expected one width, and a rank of at most it",
                    q.shape(),
                    cache.shape(),
                    out.shape()
                ),
            ));
        }
        if !scale.is_finite() {
            return Err(OpError::attribute(NAME, "scale", format!("is {scale}, expected a finite number")));
        }
        q_lens.expect_fit(NAME, "q_lens", tokens)?;
        Ok(Self {
            q: *q,
            cache: *cache,
            cache_scale: cache_scale.copied(),
            block_table: block_table.copied(),
            indices: *indices,
            q_lens: q_lens.clone(),
            scale,
            scores: AttentionScores::default(),
            out: *out,
            lse: None,
            capacity,
        })
    }

    /// Adds a logit without a value to each row's sum: f32 `[num_heads]`, not scaled.
    pub fn with_sinks(mut self, sinks: &TensorSpec) -> Result<Self> {
        self.scores.set_sinks(NAME, sinks, self.q.dims()[1])?;
        Ok(self)
    }

    /// Also writes the logarithm of each row's sum of exponentials.
    pub fn with_lse(mut self, lse: &TensorSpec) -> Result<Self> {
        expect_dims(NAME, "lse", lse, &self.q.dims()[..2])?;
        expect_dtype(NAME, "lse", lse, &[DType::F32])?;
        expect_writable(NAME, "lse", lse)?;
        self.lse = Some(*lse);
        Ok(self)
    }

    /// Queries.
    pub fn q(&self) -> &TensorSpec {
        &self.q
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
    /// Positions each token attends to.
    pub fn indices(&self) -> &TensorSpec {
        &self.indices
    }
    /// Tokens of each sequence in this call.
    pub fn q_lens(&self) -> &LensSpec {
        &self.q_lens
    }
    /// Factor of the scores.
    pub fn scale(&self) -> f32 {
        self.scale
    }
    /// The sinks, the only attribute of scores here.
    pub fn scores(&self) -> &AttentionScores {
        &self.scores
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// Natural logarithm of the sum of exponentials of each row's scores.
    pub fn lse(&self) -> Option<&TensorSpec> {
        self.lse.as_ref()
    }
    /// Entries one sequence has room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }
    /// Indices of each token.
    pub fn top_k(&self) -> usize {
        self.indices.dims()[1]
    }
}

impl Contract for SparseAttentionSpec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "q", spec: &self.q, access: Access::Read });
        visit(Operand { name: "cache", spec: &self.cache, access: Access::Read });
        if let Some(spec) = &self.cache_scale {
            visit(Operand { name: "cache_scale", spec, access: Access::Read });
        }
        if let Some(spec) = &self.block_table {
            visit(Operand { name: "block_table", spec, access: Access::Read });
        }
        visit(Operand { name: "indices", spec: &self.indices, access: Access::Read });
        visit(Operand { name: "q_lens", spec: self.q_lens.device(), access: Access::Read });
        self.scores.visit(visit);
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
        if let Some(spec) = &self.lse {
            visit(Operand { name: "lse", spec, access: Access::Write });
        }
    }

    fn cost(&self) -> Cost {
        let (heads, width, rank) = (self.q.dims()[1], self.q.dims()[2], self.out.dims()[2]);
        let pairs = self.indices.numel() as u128;
        let entries = pairs.min((self.cache.dims()[0] as u128).saturating_mul(self.cache.dims()[1] as u128));
        let clamp = |x: u128| u64::try_from(x).unwrap_or(u64::MAX);
        let scale = if self.cache_scale.is_some() { DType::F32.bytes_for(1) } else { 0 };
        let entry = (self.cache.dtype().bytes_for(width) + scale) as u128;
        let table = self.block_table.map_or(0, |table| table.bytes());
        let read = [self.q.bytes(), self.indices.bytes(), self.q_lens.device().bytes(), table];
        Cost {
            flops: clamp(pairs.saturating_mul((2 * (width + rank)) as u128).saturating_mul(heads as u128)),
            bytes_read: read
                .iter()
                .fold(clamp(entries.saturating_mul(entry)), |sum, &bytes| sum.saturating_add(bytes as u64))
                .saturating_add(self.scores.bytes()),
            bytes_written: (self.out.bytes() as u64)
                .saturating_add(self.lse.map_or(0, |lse| lse.bytes() as u64)),
            bytes_comm: 0,
        }
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let paged = usize::from(self.block_table.is_some());
        let (cache, rest) = take_entries(&self.cache, self.cache_scale.as_ref(), &inputs[1..]);
        let (q, table, indices) = (inputs[0], rest[0], rest[paged]);
        let (q_lens, values) = (rest[1 + paged], self.scores.values(&rest[2 + paged..]));
        let c = self.cache.dims();
        let (tokens, heads, width, rank) = (self.q.dims()[0], self.q.dims()[1], c[2], self.out.dims()[2]);
        let mut out = vec![0.0; tokens * heads * rank];
        let mut lse = vec![f64::NEG_INFINITY; tokens * heads];
        let mut first = 0;
        for (b, q_len) in q_lens.iter().enumerate() {
            let q_len = (q_len.max(0.0) as usize).min(tokens - first);
            for token in first..first + q_len {
                let listed = &indices[token * self.top_k()..(token + 1) * self.top_k()];
                let entries: Vec<&[f64]> = listed
                    .iter()
                    .filter(|&&index| index >= 0.0 && (index as usize) < self.capacity)
                    .filter_map(|&index| match &self.block_table {
                        Some(spec) => {
                            let place = [spec.dims()[1], b, index as usize, 0];
                            paged_row(table, [c[0], c[1], 1, width], place)
                        }
                        None => Some(b * c[1] + index as usize),
                    })
                    .map(|row| &cache[row * width..(row + 1) * width])
                    .collect();
                for head in 0..heads {
                    let at = token * heads + head;
                    let query = &q[at * width..(at + 1) * width];
                    let keys: Vec<(f64, &[f64])> = entries
                        .iter()
                        .map(|entry| {
                            let dot: f64 = query.iter().zip(*entry).map(|(q, c)| q * c).sum();
                            (f64::from(self.scale) * dot, &entry[..rank])
                        })
                        .collect();
                    lse[at] = softmax_mean(&keys, &values, head, &mut out[at * rank..(at + 1) * rank]);
                }
            }
            first += q_len;
        }
        if self.lse.is_some() { vec![out, lse] } else { vec![out] }
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        let products = (self.q.dims()[2], f64::from(self.scale.abs()));
        let types = [self.q.dtype(), self.out.dtype()];
        let (keys, scaled) = (self.top_k() as f64, self.cache_scale.is_some());
        let [out, lse] = attend_tolerance(types, products, keys, &self.scores, scaled);
        if self.lse.is_some() { vec![out, lse] } else { vec![out] }
    }
}

/// Lists for a batch: the positions that a causal token sees, the latest first, with gaps of padding; `top_k` of
/// them, fewer where a sequence is shorter.
fn lists(g: &Geometry, top_k: usize) -> Vec<f64> {
    let mut lists = Vec::new();
    for &(q_len, kv_len) in g.lens {
        for t in 0..q_len {
            let seen = (kv_len + t + 1).saturating_sub(q_len) as usize;
            lists.extend((0..top_k).map(|i| match i % 5 == 3 || i >= seen {
                true => -1.0,
                false => ((seen - 1 - i) * 7 % seen) as f64,
            }));
        }
    }
    lists.extend(std::iter::repeat_n(-1.0, g.padding * top_k));
    lists
}

impl Cases for SparseAttentionSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for (q_type, kv_type, out_type) in DTYPES {
            for g in &MLA_GEOMETRIES {
                for (page_size, top_k, sinks) in [
                    (None, 37, false),
                    (None, 90, true),
                    (Some(16), 64, true),
                    (Some(5), 11, false),
                    (None, 0, true),
                ] {
                    // Odd pages and empty lists once each: the rest of the kernel is the same.
                    if matches!(top_k, 0 | 11) && (q_type, kv_type) != (DType::F32, DType::F32) {
                        continue;
                    }
                    let q = TensorSpec::of(q_type, &[g.tokens(), g.num_heads, g.head_dim])?;
                    let out = TensorSpec::of(out_type, &[g.tokens(), g.num_heads, g.v_head_dim])?;
                    let indices = TensorSpec::of(DType::I32, &[g.tokens(), top_k])?;
                    let [q_lens, _] = g.lens(NAME, g.padding == 0)?;
                    let scale = (3.0 / g.head_dim as f32).sqrt();
                    let mut spec = match page_size {
                        None => {
                            let cache = TensorSpec::of(kv_type, &[g.lens.len(), g.max_len(), g.head_dim])?;
                            Self::new(&q, &cache, &indices, &q_lens, scale, &out)?
                        }
                        Some(page_size) => {
                            let (_, max_pages, num_pages) = g.block_table(page_size);
                            let cache = TensorSpec::of(kv_type, &[num_pages, page_size, g.head_dim])?;
                            let table = TensorSpec::of(DType::I32, &[g.lens.len(), max_pages])?;
                            Self::paged(&q, &cache, &table, &indices, &q_lens, scale, &out)?
                        }
                    };
                    if sinks {
                        spec = spec.with_sinks(&TensorSpec::of(DType::F32, &[g.num_heads])?)?;
                    }
                    if out_type == DType::F32 {
                        spec = spec.with_lse(&TensorSpec::of(DType::F32, &[g.tokens(), g.num_heads])?)?;
                    }
                    let form = page_size.map_or("contiguous".into(), |size| format!("page_{size}"));
                    let name = format!("{NAME}/{q_type}_{kv_type}_{out_type}/{}/{form}_top_{top_k}", g.name);
                    let table = page_size.map_or(Vec::new(), |size| g.block_table(size).0);
                    cases.push(
                        g.case(name, spec)
                            .fill("block_table", Fill::Values(table))
                            .fill("indices", Fill::Values(lists(g, top_k))),
                    );
                }
            }
        }
        for (q_type, code, out_type) in [
            (DType::F32, DType::I8, DType::F32),
            (DType::BF16, DType::F8E4M3, DType::BF16),
            (DType::F32, DType::F8E5M2, DType::F32),
        ] {
            for (g, page_size) in MLA_GEOMETRIES.iter().flat_map(|g| [(g, None), (g, Some(16))]) {
                let top_k = 37;
                let q = TensorSpec::of(q_type, &[g.tokens(), g.num_heads, g.head_dim])?;
                let out = TensorSpec::of(out_type, &[g.tokens(), g.num_heads, g.v_head_dim])?;
                let indices = TensorSpec::of(DType::I32, &[g.tokens(), top_k])?;
                let [lens, _] = g.lens(NAME, g.padding == 0)?;
                let scale = (3.0 / g.head_dim as f32).sqrt();
                let (table, form, spec) = match page_size {
                    None => {
                        let cache = TensorSpec::of(code, &[g.lens.len(), g.max_len(), g.head_dim])?;
                        let own = TensorSpec::of(DType::F32, &cache.dims()[..2])?;
                        let spec = Self::quantized(&q, [&cache, &own], &indices, &lens, scale, &out)?;
                        (Vec::new(), "contiguous", spec)
                    }
                    Some(page_size) => {
                        let (order, max_pages, num_pages) = g.block_table(page_size);
                        let cache = TensorSpec::of(code, &[num_pages, page_size, g.head_dim])?;
                        let own = TensorSpec::of(DType::F32, &cache.dims()[..2])?;
                        let table = TensorSpec::of(DType::I32, &[g.lens.len(), max_pages])?;
                        let cache = [&cache, &own];
                        (
                            order,
                            "paged",
                            Self::quantized_paged(&q, cache, &table, &indices, &lens, scale, &out)?,
                        )
                    }
                };
                let [codes, scales] = code_fills(code);
                let name = format!("{NAME}/{q_type}_{code}_{out_type}/{}/{form}", g.name);
                cases.push(
                    g.case(name, spec)
                        .fill("block_table", Fill::Values(table))
                        .fill("indices", Fill::Values(lists(g, top_k)))
                        .fill("cache", codes)
                        .fill("cache_scale", scales),
                );
            }
        }
        // One pool for all tokens, lists longer than a chunk, entries as columns of wider rows.
        let q = TensorSpec::of(DType::BF16, &[2, 33, 24])?;
        let pool = TensorSpec::of(DType::BF16, &[1, 700, 30])?.narrow(2, 3, 24)?;
        let indices = TensorSpec::of(DType::I32, &[600, 2])?.transpose(0, 1)?;
        let lens = LensSpec::new(NAME, "q_lens", &TensorSpec::of(DType::I32, &[1])?, 2)?;
        let out = TensorSpec::of(DType::F32, &[33, 2, 16])?.transpose(0, 1)?;
        let lse = TensorSpec::of(DType::F32, &[2, 33])?;
        let spec = Self::new(&q, &pool, &indices, &lens, 0.25, &out)?.with_lse(&lse)?;
        cases.push(
            Case::new(format!("{NAME}/pool_strided"), spec)
                .fill("q_lens", Fill::Values(vec![2.0]))
                .fill("indices", Fill::Range(-40.0, 700.0)),
        );
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::MlaDecodeSpec;

    fn spec(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    #[test]
    fn a_list_of_all_visible_positions_in_any_order_is_latent_attention() {
        let (q, cache) = (spec(DType::F32, &[2, 3, 5]), spec(DType::F32, &[1, 4, 5]));
        let (out, lse) = (spec(DType::F32, &[2, 3, 2]), spec(DType::F32, &[2, 3]));
        let lens = LensSpec::new(NAME, "lens", &spec(DType::I32, &[1]), 4).unwrap();
        let (queries, entries) = (Fill::Unit.draw(&q, 1), Fill::Unit.draw(&cache, 2));
        let dense = MlaDecodeSpec::new(&q, &cache, &lens, &lens, 0.5, &out).unwrap().with_lse(&lse).unwrap();
        let want = dense.reference(&[&queries, &entries, &[2.0], &[4.0]]);
        let indices = spec(DType::I32, &[2, 5]);
        let sparse = SparseAttentionSpec::new(&q, &cache, &indices, &lens, 0.5, &out).unwrap();
        let listed = [2.0, -1.0, 0.0, 1.0, -1.0, 3.0, 2.0, 1.0, -7.0, 0.0];
        let got = sparse.with_lse(&lse).unwrap().reference(&[&queries, &entries, &listed, &[2.0]]);
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            assert!((got - want).abs() < 1e-12, "{got} {want}");
        }
    }

    #[test]
    fn a_sink_takes_weight_and_is_all_that_is_left_of_an_empty_list() {
        let (q, cache) = (spec(DType::F32, &[2, 1, 1]), spec(DType::F32, &[1, 1, 1]));
        let lens = LensSpec::new(NAME, "lens", &spec(DType::I32, &[1]), 2).unwrap();
        let indices = spec(DType::I32, &[2, 1]);
        let s = SparseAttentionSpec::new(&q, &cache, &indices, &lens, 1.0, &q).unwrap();
        let s = s.with_sinks(&spec(DType::F32, &[1])).unwrap().with_lse(&spec(DType::F32, &[2, 1])).unwrap();
        // Score 0 and sink ln 3 share a sum of 4.
        let got = s.reference(&[&[0.0, 0.0], &[8.0], &[0.0, -1.0], &[2.0], &[3.0f64.ln()]]);
        assert!((got[0][0] - 2.0).abs() < 1e-12 && (got[1][0] - 4.0f64.ln()).abs() < 1e-12);
        assert!(got[0][1] == 0.0 && (got[1][1] - 3.0f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn every_case_is_legal() {
        assert!(SparseAttentionSpec::cases().unwrap().len() > 100);
    }
}
