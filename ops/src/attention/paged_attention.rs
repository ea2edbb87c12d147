//! Attention over a paged key-value cache, for a ragged batch of sequences.
//!
//! The query side lies in `query.rs`; the same operator over a contiguous cache is `attention.rs`.

use super::geometry::{DTYPES, GEOMETRIES, Geometry};
use super::kv_scales::{KvScales, fills, take_cache, visit_cache};
use super::query::{AttentionQuery, CacheExtents};
use super::scores::{VARIANTS, score_attributes};
use super::{AttentionMask, LensSpec};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dtype, expect_rank,
};

const NAME: &str = "paged_attention";

/// Attends to the keys and values of a paged cache.
///
/// As [`crate::attention::AttentionSpec`], with key j of sequence b in row `j mod page_size` of page
/// `block_table[b, j / page_size]`.
///
/// # Shapes
/// q `[tokens, num_heads, head_dim]`, k `[num_pages, page_size, num_kv_heads, head_dim]`, v
/// `[num_pages, page_size, num_kv_heads, v_head_dim]`, block_table `[batch, max_pages]`, q_lens and kv_lens
/// `[batch]`, out `[tokens, num_heads, v_head_dim]`, lse `[tokens, num_heads]`. page_size is at least 1;
/// kernels may want a multiple of 16, others are then composed.
///
/// # DTypes
/// As for contiguous attention; block_table i32, an entry below zero is an absent page.
///
/// # Layout
/// Any strides. Kernels may want the innermost dimension contiguous; other layouts are then composed.
///
/// # Determinism
/// As for contiguous attention. Which pages hold the keys does not matter.
///
/// # Cost
/// As for contiguous attention, plus the block table.
///
/// # Errors
/// As for contiguous attention; `Data` also when a page that holds a visible key is absent or out of range.
///
/// # Source
/// Kwon et al. 2023, PagedAttention.
#[derive(Clone, Debug, PartialEq)]
pub struct PagedAttentionSpec {
    query: AttentionQuery,
    k: TensorSpec,
    v: TensorSpec,
    scales: Option<KvScales>,
    block_table: TensorSpec,
}

impl PagedAttentionSpec {
    /// Causal attention, scaled by `1/√head_dim`.
    pub fn new(
        q: &TensorSpec,
        k: &TensorSpec,
        v: &TensorSpec,
        block_table: &TensorSpec,
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked(q, [k, v], None, block_table, [q_lens, kv_lens], out)
    }

    /// The same over a cache of codes; k and v each with its scales, one for each position and head.
    pub fn quantized(
        q: &TensorSpec,
        [k, k_scale]: [&TensorSpec; 2],
        [v, v_scale]: [&TensorSpec; 2],
        block_table: &TensorSpec,
        q_lens: &LensSpec,
        kv_lens: &LensSpec,
        out: &TensorSpec,
    ) -> Result<Self> {
        Self::checked(q, [k, v], Some([k_scale, v_scale]), block_table, [q_lens, kv_lens], out)
    }

    fn checked(
        q: &TensorSpec,
        [k, v]: [&TensorSpec; 2],
        scales: Option<[&TensorSpec; 2]>,
        block_table: &TensorSpec,
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
        let capacity = page_capacity(NAME, k, block_table, kv_lens)?;
        let extents = CacheExtents {
            capacity,
            num_kv_heads: k.dims()[2],
            head_dim: k.dims()[3],
            v_head_dim: v.dims()[3],
            scaled: scales.is_some(),
        };
        let scales = scales.map(|scales| KvScales::new(NAME, [k, v], scales)).transpose()?;
        let query = AttentionQuery::new(NAME, q, [k, v], extents, [q_lens, kv_lens], out)?;
        Ok(Self { query, k: *k, v: *v, scales, block_table: *block_table })
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

    fn of_geometry(g: &Geometry, page_size: usize, [q_type, kv_type, out_type]: [DType; 3]) -> Result<Self> {
        let (_, max_pages, num_pages) = g.block_table(page_size);
        let k = TensorSpec::of(kv_type, &[num_pages, page_size, g.num_kv_heads, g.head_dim])?;
        let v = TensorSpec::of(kv_type, &[num_pages, page_size, g.num_kv_heads, g.v_head_dim])?;
        let q = TensorSpec::of(q_type, &[g.tokens(), g.num_heads, g.head_dim])?;
        let out = TensorSpec::of(out_type, &[g.tokens(), g.num_heads, g.v_head_dim])?;
        let block_table = TensorSpec::of(DType::I32, &[g.lens.len(), max_pages])?;
        let [q_lens, kv_lens] = g.lens(NAME, g.padding == 0)?;
        let spec = Self::new(&q, &k, &v, &block_table, &q_lens, &kv_lens, &out)?.with_mask(g.mask)?;
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
    /// Pages of each sequence.
    pub fn block_table(&self) -> &TensorSpec {
        &self.block_table
    }
    /// Keys a page holds.
    pub fn page_size(&self) -> usize {
        self.k.dims()[1]
    }
}

/// Room for the entries of one sequence, in a cache `[batch, max_len, ..]` or, with a table, in its pages.
pub(super) fn cache_room(
    op: &'static str,
    (arg, cache): (&'static str, &TensorSpec),
    rank: usize,
    block_table: Option<&TensorSpec>,
    (lens_arg, lens): (&'static str, &LensSpec),
) -> Result<usize> {
    expect_rank(op, arg, cache, rank)?;
    if let Some(block_table) = block_table {
        return page_capacity(op, cache, block_table, lens);
    }
    if cache.dims()[0] != lens.count() {
        return Err(OpError::shape(
            op,
            format!("{arg} is {}, {lens_arg} has {} sequences", cache.shape(), lens.count()),
        ));
    }
    Ok(cache.dims()[1])
}

/// Checks a block table against a paged cache and gives the number of keys one sequence has room for.
fn page_capacity(
    op: &'static str,
    cache: &TensorSpec,
    block_table: &TensorSpec,
    lens: &LensSpec,
) -> Result<usize> {
    expect_rank(op, "block_table", block_table, 2)?;
    expect_dtype(op, "block_table", block_table, &[DType::I32])?;
    if block_table.dims()[0] != lens.count() {
        return Err(OpError::shape(
            op,
            format!("block_table is {}, kv_lens has {} sequences", block_table.shape(), lens.count()),
        ));
    }
    if cache.dims()[1] == 0 {
        return Err(OpError::shape(op, format!("the cache is {}: page_size is 0", cache.shape())));
    }
    Ok(block_table.dims()[1].saturating_mul(cache.dims()[1]))
}

/// The row of a paged cache that holds a key; `None` where the table has no page for it.
pub(super) fn paged_row(
    table: &[f64],
    dims: [usize; 4],
    [max_pages, b, pos, head]: [usize; 4],
) -> Option<usize> {
    let [num_pages, page_size, kv_heads, _] = dims;
    let page = table.get(b * max_pages + pos / page_size).copied()?;
    let valid = page >= 0.0 && page < num_pages as f64;
    valid.then(|| (page as usize * page_size + pos % page_size) * kv_heads + head)
}

impl Contract for PagedAttentionSpec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        let query = &self.query;
        visit(Operand { name: "q", spec: &query.q, access: Access::Read });
        visit_cache([&self.k, &self.v], self.scales.as_ref(), visit);
        visit(Operand { name: "block_table", spec: &self.block_table, access: Access::Read });
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
        self.query.cost(entry as u64, self.block_table.bytes() as u64)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let d = self.k.dims();
        let dims = [d[0], d[1], d[2], d[3]];
        let max_pages = self.block_table.dims()[1];
        let ([k, v], rest) = take_cache([&self.k, &self.v], self.scales.as_ref(), &inputs[1..]);
        let row = |b, pos, head| paged_row(rest[0], dims, [max_pages, b, pos, head]);
        self.query.reference(inputs[0], [&k, &v], &rest[1..], &row)
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        self.query.tolerance()
    }
}

impl Cases for PagedAttentionSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for (q_type, kv_type, out_type) in DTYPES {
            for g in &GEOMETRIES {
                for page_size in [16, 64, 5] {
                    // Odd pages and large ones once each: the rest of the kernel is the same.
                    if page_size != 16 && (kv_type != DType::F32 || g.lens.is_empty()) {
                        continue;
                    }
                    let base = Self::of_geometry(g, page_size, [q_type, kv_type, out_type])?;
                    let name = format!("{NAME}/{q_type}_{kv_type}_{out_type}/{}/page_{page_size}", g.name);
                    let case = |name, spec| {
                        g.case(name, spec).fill("block_table", Fill::Values(g.block_table(page_size).0))
                    };
                    // The rest of a row is the contiguous operator's; here that each attribute arrives.
                    for variant in VARIANTS.iter().filter(|_| g.scores && kv_type == DType::F32) {
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
        // Queries sliced from a fused projection, results in wider rows.
        let q = TensorSpec::of(DType::F32, &[5, 6, 8])?.narrow(1, 2, 2)?;
        let out = TensorSpec::of(DType::F32, &[5, 2, 12])?.narrow(2, 3, 8)?;
        let pages = TensorSpec::of(DType::F32, &[3, 16, 1, 8])?;
        let table = TensorSpec::of(DType::I32, &[1, 2])?;
        let lens = TensorSpec::of(DType::I32, &[1])?;
        let lens = |arg, max| LensSpec::new(NAME, arg, &lens, max);
        let (q_lens, kv_lens) = (lens("q_lens", 5)?, lens("kv_lens", 17)?);
        cases.push(
            Case::new(
                format!("{NAME}/strided"),
                Self::new(&q, &pages, &pages, &table, &q_lens, &kv_lens, &out)?,
            )
            .fill("block_table", Fill::Values(vec![2.0, 0.0]))
            .fill("q_lens", Fill::Values(vec![5.0]))
            .fill("kv_lens", Fill::Values(vec![17.0])),
        );
        let codes = [DType::I8, DType::F8E4M3, DType::F8E5M2].into_iter();
        for (code, g) in codes.flat_map(|code| GEOMETRIES.iter().map(move |g| (code, g))) {
            if g.lens.is_empty() {
                continue;
            }
            let plain = Self::of_geometry(g, 16, [DType::F32; 3])?;
            let query = plain.query();
            let [k, v] = [&plain.k, &plain.v].map(|spec| spec.with_dtype(code));
            let own = TensorSpec::of(DType::F32, &k.dims()[..3])?;
            let spec = Self::quantized(
                &query.q,
                [&k, &own],
                [&v, &own],
                &plain.block_table,
                &query.q_lens,
                &query.kv_lens,
                &query.out,
            )?;
            let case = g
                .case(format!("{NAME}/f32_{code}_f32/{}/page_16", g.name), spec.with_mask(g.mask)?)
                .fill("block_table", Fill::Values(g.block_table(16).0));
            cases.push(fills(code).into_iter().fold(case, |case, (arg, fill)| case.fill(arg, fill)));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_may_lie_in_any_order() {
        let spec = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
        let cache = spec(DType::F32, &[2, 2, 1, 1]);
        let q = spec(DType::F32, &[1, 1, 1]);
        let lens = LensSpec::new(NAME, "kv_lens", &spec(DType::I32, &[1]), 4).unwrap();
        let table = spec(DType::I32, &[1, 2]);
        let s = PagedAttentionSpec::new(&q, &cache, &cache, &table, &lens, &lens, &q).unwrap();
        let s = s.with_scale(0.0).unwrap();
        let (k, v) = ([0.0; 4], [1.0, 2.0, 30.0, 40.0]);
        // Zero scores weigh all keys alike: 3 at a time give thirds, 2 halves.
        let mean =
            |table: &[f64], kv_len: f64| s.reference(&[&[1.0], &k, &v, table, &[1.0], &[kv_len]])[0][0];
        assert!((mean(&[1.0, 0.0], 3.0) - 71.0 / 3.0).abs() < 1e-12);
        assert!((mean(&[0.0, 1.0], 3.0) - 11.0).abs() < 1e-12);
        assert_eq!(mean(&[0.0, -1.0], 2.0), 1.5);
    }

    #[test]
    fn lengths_above_what_the_table_reaches_are_refused() {
        let spec = |dtype, dims: &[usize]| TensorSpec::of(dtype, dims).unwrap();
        let cache = spec(DType::F32, &[9, 16, 1, 8]);
        let q = spec(DType::F32, &[1, 1, 8]);
        let lens = LensSpec::new(NAME, "kv_lens", &spec(DType::I32, &[1]), 33).unwrap();
        let table = spec(DType::I32, &[1, 2]);
        let e = PagedAttentionSpec::new(&q, &cache, &cache, &table, &lens, &lens, &q).unwrap_err();
        assert_eq!(e.to_string(), "paged_attention: kv_lens may reach 33, the cache holds 32");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(PagedAttentionSpec::cases().unwrap().len() > 100);
    }
}
