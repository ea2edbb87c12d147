//! Arguments of attention and of what fills its caches.

use super::{Arguments, Choices};
use portolan_ops::attention::{
    AttentionSpec, IndexLogitsSpec, KvCacheWriteSpec, LensSpec, MergeAttentionSpec, MlaDecodeSpec,
    PagedAttentionSpec, SparseAttentionSpec,
};
use portolan_ops::{DType, Result, TensorSpec};

/// Types of cached codes.
const CODES: [DType; 3] = [DType::I8, DType::F8E4M3, DType::F8E5M2];

/// Type of a query, type of a cache beside it, and whether the cache has scales.
fn cache_types(from: &mut Choices<'_>) -> (DType, DType, bool) {
    let q = from.dtype();
    match from.byte() % 8 {
        0 => (q, from.dtype(), from.flag()),
        1 | 2 => (q, from.one_of(&CODES), true),
        3 => (DType::F32, from.one_of(&[DType::F16, DType::BF16]), false),
        _ => (q, q, false),
    }
}

/// Those for a type of numbers or of codes.
fn types_for(dtype: DType) -> (DType, DType, bool) {
    if CODES.contains(&dtype) { (DType::F32, dtype, true) } else { (dtype, dtype, false) }
}

/// The scales of a cache: mostly one for each of its rows.
fn scales(from: &mut Choices<'_>, cache: &TensorSpec) -> Result<TensorSpec> {
    let last = cache.rank().saturating_sub(1);
    from.of(DType::F32, &cache.dims()[..last])
}

/// Lengths of one sequence with one entry.
fn one(op: &'static str) -> Result<LensSpec> {
    LensSpec::new(op, "lens", &TensorSpec::of(DType::I32, &[1])?, 1)
}

/// What the operators that attend to a range of keys have in common after their operands.
macro_rules! attributes {
    ($op:ident, $from:ident, [$tokens:expr, $heads:expr, $keys:expr]) => {{
        let (tokens, heads, keys): (usize, usize, usize) = ($tokens, $heads, $keys);
        $op = $op.with_mask($from.mask())?;
        if $from.flag() {
            $op = $op.with_lse(&$from.of(DType::F32, &[tokens, heads])?)?;
        }
        if $from.flag() {
            $op = $op.with_soft_cap($from.real() as f32)?;
        }
        if $from.flag() {
            let dtype = $from.one_of(&[DType::Bool, DType::F32, DType::F16, DType::BF16]);
            let keys = keys.saturating_add(usize::from($from.byte() % 3));
            $op = $op.with_attn_mask(&$from.of(dtype, &[tokens, heads, keys])?)?;
        }
        if $from.flag() {
            $op = $op.with_slopes(&$from.of(DType::F32, &[heads])?)?;
        }
        if $from.flag() {
            $op = $op.with_sinks(&$from.of(DType::F32, &[heads])?)?;
        }
    }};
}

/// Tokens, query heads, key heads, and widths of keys and of values.
struct Heads {
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    width: usize,
    v_width: usize,
}

impl Heads {
    fn arbitrary(from: &mut Choices<'_>) -> Self {
        let (tokens, kv_heads, width) = (from.few(), from.few(), from.few());
        let heads = kv_heads.saturating_mul(from.few());
        Self { tokens, heads, kv_heads, width, v_width: if from.flag() { width } else { from.few() } }
    }
}

impl Arguments for AttentionSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (batch, room, h) = (from.few(), from.size(), Heads::arbitrary(from));
        let (q_type, kv_type, scaled) = cache_types(from);
        let q = from.of(q_type, &[h.tokens, h.heads, h.width])?;
        let k = from.of(kv_type, &[batch, room, h.kv_heads, h.width])?;
        let v = from.of(kv_type, &[batch, room, h.kv_heads, h.v_width])?;
        let (q_lens, kv_lens) = (from.lens(batch)?, from.lens(batch)?);
        let out = from.out(AttentionSpec::out_spec(&q, &v))?;
        let mut op = match scaled {
            true => {
                let (k_scale, v_scale) = (scales(from, &k)?, scales(from, &v)?);
                AttentionSpec::quantized(&q, [&k, &k_scale], [&v, &v_scale], &q_lens, &kv_lens, &out)?
            }
            false => AttentionSpec::new(&q, &k, &v, &q_lens, &kv_lens, &out)?,
        };
        attributes!(op, from, [h.tokens, h.heads, kv_lens.max() as usize]);
        if from.flag() { op.with_scale(from.real() as f32) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (q, kv, scaled) = types_for(dtype);
        let (q, kv) = (TensorSpec::of(q, &[1, 1, 2])?, TensorSpec::of(kv, &[1, 1, 1, 2])?);
        let (lens, scale) = (one("attention")?, TensorSpec::of(DType::F32, &[1, 1, 1])?);
        match scaled {
            true => AttentionSpec::quantized(&q, [&kv, &scale], [&kv, &scale], &lens, &lens, &q),
            false => AttentionSpec::new(&q, &kv, &kv, &lens, &lens, &q),
        }
    }
}

impl Arguments for PagedAttentionSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (batch, pages, h) = (from.few(), from.few(), Heads::arbitrary(from));
        let page = from.one_of(&[16, 32, 1, 4]);
        let (q_type, kv_type, scaled) = cache_types(from);
        let q = from.of(q_type, &[h.tokens, h.heads, h.width])?;
        let k = from.of(kv_type, &[pages, page, h.kv_heads, h.width])?;
        let v = from.of(kv_type, &[pages, page, h.kv_heads, h.v_width])?;
        let table = [batch, from.few()];
        let table = from.indices(&table)?;
        let (q_lens, kv_lens) = (from.lens(batch)?, from.lens(batch)?);
        let out = from.out(PagedAttentionSpec::out_spec(&q, &v))?;
        let mut op = match scaled {
            true => {
                let (k, v) = ([&k, &scales(from, &k)?], [&v, &scales(from, &v)?]);
                PagedAttentionSpec::quantized(&q, k, v, &table, &q_lens, &kv_lens, &out)?
            }
            false => PagedAttentionSpec::new(&q, &k, &v, &table, &q_lens, &kv_lens, &out)?,
        };
        attributes!(op, from, [h.tokens, h.heads, kv_lens.max() as usize]);
        if from.flag() { op.with_scale(from.real() as f32) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (q, kv, scaled) = types_for(dtype);
        let (q, kv) = (TensorSpec::of(q, &[1, 1, 2])?, TensorSpec::of(kv, &[1, 16, 1, 2])?);
        let (lens, scale) = (one("paged_attention")?, TensorSpec::of(DType::F32, &[1, 16, 1])?);
        let table = TensorSpec::of(DType::I32, &[1, 1])?;
        match scaled {
            true => PagedAttentionSpec::quantized(&q, [&kv, &scale], [&kv, &scale], &table, &lens, &lens, &q),
            false => PagedAttentionSpec::new(&q, &kv, &kv, &table, &lens, &lens, &q),
        }
    }
}

/// A cache of entries that all heads share, its scales, and the table of a paged one.
struct Entries {
    cache: TensorSpec,
    scale: Option<TensorSpec>,
    table: Option<TensorSpec>,
}

impl Entries {
    fn arbitrary(
        from: &mut Choices<'_>,
        [batch, width]: [usize; 2],
        kv: DType,
        scaled: bool,
    ) -> Result<Self> {
        let (cache, table) = match from.flag() {
            true => {
                let (pages, page) = (from.few(), from.one_of(&[16, 32, 1, 4]));
                let table = [batch, from.few()];
                (from.of(kv, &[pages, page, width])?, Some(from.indices(&table)?))
            }
            false => {
                let room = from.size();
                (from.of(kv, &[batch, room, width])?, None)
            }
        };
        let scale = if scaled { Some(scales(from, &cache)?) } else { None };
        Ok(Self { cache, scale, table })
    }

    fn smallest(dtype: DType) -> Result<(TensorSpec, Self)> {
        let (q, kv, scaled) = types_for(dtype);
        let (q, cache) = (TensorSpec::of(q, &[1, 1, 2])?, TensorSpec::of(kv, &[1, 1, 2])?);
        let scale = if scaled { Some(TensorSpec::of(DType::F32, &[1, 1])?) } else { None };
        Ok((q, Self { cache, scale, table: None }))
    }

    fn mla(
        &self,
        q: &TensorSpec,
        [q_lens, kv_lens]: [&LensSpec; 2],
        scale: f32,
        out: &TensorSpec,
    ) -> Result<MlaDecodeSpec> {
        let cache = &self.cache;
        match (&self.scale, &self.table) {
            (None, None) => MlaDecodeSpec::new(q, cache, q_lens, kv_lens, scale, out),
            (Some(by), None) => MlaDecodeSpec::quantized(q, [cache, by], q_lens, kv_lens, scale, out),
            (None, Some(table)) => MlaDecodeSpec::paged(q, cache, table, q_lens, kv_lens, scale, out),
            (Some(by), Some(table)) => {
                MlaDecodeSpec::quantized_paged(q, [cache, by], table, q_lens, kv_lens, scale, out)
            }
        }
    }

    fn sparse(
        &self,
        q: &TensorSpec,
        indices: &TensorSpec,
        lens: &LensSpec,
        scale: f32,
        out: &TensorSpec,
    ) -> Result<SparseAttentionSpec> {
        let cache = &self.cache;
        match (&self.scale, &self.table) {
            (None, None) => SparseAttentionSpec::new(q, cache, indices, lens, scale, out),
            (Some(by), None) => SparseAttentionSpec::quantized(q, [cache, by], indices, lens, scale, out),
            (None, Some(table)) => SparseAttentionSpec::paged(q, cache, table, indices, lens, scale, out),
            (Some(by), Some(table)) => {
                SparseAttentionSpec::quantized_paged(q, [cache, by], table, indices, lens, scale, out)
            }
        }
    }

    fn index(
        &self,
        q: &TensorSpec,
        weights: &TensorSpec,
        lens: [&LensSpec; 2],
        ratio: u32,
        logits: &TensorSpec,
    ) -> Result<IndexLogitsSpec> {
        let cache = &self.cache;
        match (&self.scale, &self.table) {
            (None, None) => IndexLogitsSpec::new(q, cache, weights, lens, ratio, logits),
            (Some(by), None) => IndexLogitsSpec::quantized(q, [cache, by], weights, lens, ratio, logits),
            (None, Some(table)) => IndexLogitsSpec::paged(q, cache, table, weights, lens, ratio, logits),
            (Some(by), Some(table)) => {
                IndexLogitsSpec::quantized_paged(q, [cache, by], table, weights, lens, ratio, logits)
            }
        }
    }
}

impl Arguments for MlaDecodeSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (batch, h) = (from.few(), Heads::arbitrary(from));
        let (q_type, kv_type, scaled) = cache_types(from);
        let q = from.of(q_type, &[h.tokens, h.heads, h.width])?;
        let entries = Entries::arbitrary(from, [batch, h.width], kv_type, scaled)?;
        let (q_lens, kv_lens) = (from.lens(batch)?, from.lens(batch)?);
        let out = from.of(q_type, &[h.tokens, h.heads, h.v_width.min(h.width)])?;
        let mut op = entries.mla(&q, [&q_lens, &kv_lens], from.real() as f32, &out)?;
        attributes!(op, from, [h.tokens, h.heads, kv_lens.max() as usize]);
        Ok(op)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let ((q, entries), lens) = (Entries::smallest(dtype)?, one("mla_decode")?);
        entries.mla(&q, [&lens, &lens], 1.0, &q)
    }
}

impl Arguments for SparseAttentionSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (batch, top_k, h) = (from.few(), from.few(), Heads::arbitrary(from));
        let (q_type, kv_type, scaled) = cache_types(from);
        let q = from.of(q_type, &[h.tokens, h.heads, h.width])?;
        let entries = Entries::arbitrary(from, [batch, h.width], kv_type, scaled)?;
        let (indices, lens) = (from.indices(&[h.tokens, top_k])?, from.lens(batch)?);
        let out = from.of(q_type, &[h.tokens, h.heads, h.v_width.min(h.width)])?;
        let mut op = entries.sparse(&q, &indices, &lens, from.real() as f32, &out)?;
        if from.flag() {
            op = op.with_sinks(&from.of(DType::F32, &[h.heads])?)?;
        }
        if from.flag() { op.with_lse(&from.of(DType::F32, &[h.tokens, h.heads])?) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let ((q, entries), lens) = (Entries::smallest(dtype)?, one("sparse_attention")?);
        entries.sparse(&q, &TensorSpec::of(DType::I32, &[1, 1])?, &lens, 1.0, &q)
    }
}

impl Arguments for IndexLogitsSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (batch, h) = (from.few(), Heads::arbitrary(from));
        let (q_type, kv_type, scaled) = cache_types(from);
        let q = from.of(q_type, &[h.tokens, h.heads, h.width])?;
        let entries = Entries::arbitrary(from, [batch, h.width], kv_type, scaled)?;
        let weights = from.of(DType::F32, &[h.tokens, h.heads])?;
        let (q_lens, kv_lens) = (from.lens(batch)?, from.lens(batch)?);
        let keys = from.size();
        let logits = from.of(DType::F32, &[h.tokens, keys])?;
        let ratio = from.one_of(&[1, 1, 2, 4, 0, u32::MAX]);
        entries.index(&q, &weights, [&q_lens, &kv_lens], ratio, &logits)
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let ((q, entries), lens) = (Entries::smallest(dtype)?, one("index_logits")?);
        let x = TensorSpec::of(DType::F32, &[1, 1])?;
        entries.index(&q, &x, [&lens, &lens], 1, &x)
    }
}

impl Arguments for MergeAttentionSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let dims = [from.few(), from.few(), from.few(), from.size()];
        let dtype = from.dtype();
        let (parts, lses) = (from.of(dtype, &dims)?, from.of(DType::F32, &dims[..3])?);
        let out = from.out(MergeAttentionSpec::out_spec(&parts))?;
        let op = MergeAttentionSpec::new(&parts, &lses, &out)?;
        if from.flag() { op.with_lse(&from.of(DType::F32, &dims[1..3])?) } else { Ok(op) }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (parts, lses) = (TensorSpec::of(dtype, &[2, 1, 1, 2])?, TensorSpec::of(DType::F32, &[2, 1, 1])?);
        MergeAttentionSpec::new(&parts, &lses, &MergeAttentionSpec::out_spec(&parts)?)
    }
}

impl Arguments for KvCacheWriteSpec {
    fn arbitrary(from: &mut Choices<'_>) -> Result<Self> {
        let (batch, tokens, heads, width) = (from.few(), from.few(), from.few(), from.few());
        let (x, kv, scaled) = cache_types(from);
        let x = from.of(x, &[tokens, heads, width])?;
        let paged = from.flag();
        let (cache, table) = match paged {
            true => {
                let (pages, page) = (from.few(), from.one_of(&[16, 32, 1, 4]));
                let table = [batch, from.few()];
                (from.of(kv, &[pages, page, heads, width])?, from.indices(&table)?)
            }
            false => {
                let room = from.size();
                (from.of(kv, &[batch, room, heads, width])?, x)
            }
        };
        let (q_lens, kv_lens) = (from.lens(batch)?, from.lens(batch)?);
        let scale = if scaled { Some(scales(from, &cache)?) } else { None };
        match (scale, paged) {
            (None, false) => KvCacheWriteSpec::new(&x, &cache, &q_lens, &kv_lens),
            (Some(by), false) => KvCacheWriteSpec::quantized(&x, &cache, &by, &q_lens, &kv_lens),
            (None, true) => KvCacheWriteSpec::paged(&x, &cache, &table, &q_lens, &kv_lens),
            (Some(by), true) => KvCacheWriteSpec::quantized_paged(&x, &cache, &by, &table, &q_lens, &kv_lens),
        }
    }

    fn smallest(dtype: DType) -> Result<Self> {
        let (x, kv, scaled) = types_for(dtype);
        let (x, cache) = (TensorSpec::of(x, &[1, 1, 2])?, TensorSpec::of(kv, &[1, 1, 1, 2])?);
        let lens = one("kv_cache_write")?;
        match scaled {
            true => {
                let scale = TensorSpec::of(DType::F32, &[1, 1, 1])?;
                KvCacheWriteSpec::quantized(&x, &cache, &scale, &lens, &lens)
            }
            false => KvCacheWriteSpec::new(&x, &cache, &lens, &lens),
        }
    }
}
