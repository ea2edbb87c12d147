//! Index logits: how much each token wants each key, from few small heads; top-k of them selects keys.
//!
//! What attends to the selected keys is `sparse_attention.rs`.

use super::LensSpec;
use super::kv_scales::{CODES, code_fills, expect_scaled, take_entries};
use super::paged_attention::{cache_room, paged_row};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_rank, expect_writable,
};

const NAME: &str = "index_logits";

/// Scores keys for every token by a weighted sum over heads.
///
/// `logits[t, j] = Σ_h weights[t, h] · max(⟨q[t, h], k[b, j]⟩, 0)` for the keys that t sees, −∞ for the others
///
/// The tokens of the sequences follow one another as in [`crate::attention::AttentionSpec`]. kv_lens counts the
/// tokens of a sequence, and each key stands for `ratio` consecutive ones: a token at position p sees key j if
/// `(j + 1) · ratio ≤ p + 1`, so if it has come to the last token of the key. With the ratio 1 that is causal
/// attention. Rows past the last sequence are all −∞.
///
/// The selection is [`crate::kernel::TopKSpec`] of the logits: a token that sees fewer than k keys gets, behind
/// them, keys whose value is −∞.
///
/// # Shapes
/// q `[tokens, num_heads, head_dim]`, k `[batch, max_len, head_dim]`, or `[num_pages, page_size, head_dim]` with
/// a block_table `[batch, max_pages]`; weights `[tokens, num_heads]`, q_lens and kv_lens `[batch]`, logits
/// `[tokens, keys]` with keys at least `kv_lens / ratio`, k_scale as k less its last dimension. Any extent but page_size may be zero.
///
/// # DTypes
/// q f32, f16 or bf16; k of q's type, or f16 or bf16 beside an f32 q, or i8, f8e4m3 or f8e5m2 with f32 scales;
/// weights and logits f32; lengths and block_table i32. Sums in f32.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// `BatchInvariant`: a logit depends on its token's queries and weights and on its key.
///
/// # Cost
/// `2·(head_dim + 1)·num_heads` operations for each visible pair; keys visible to any token are read once. From
/// the host's lengths if known, else from their bounds.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (logits overlap themselves), `Attribute` (lengths above what the cache or a row of
/// logits holds, a ratio of 0). `Data` when a length is negative or above its bound, when q_lens add up to more
/// than tokens, or when a page that holds a visible key is absent or out of range.
///
/// # Source
/// DeepSeek-AI 2025, the lightning indexer of DeepSeek-V3.2.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexLogitsSpec {
    q: TensorSpec,
    k: TensorSpec,
    k_scale: Option<TensorSpec>,
    block_table: Option<TensorSpec>,
    weights: TensorSpec,
    q_lens: LensSpec,
    kv_lens: LensSpec,
    ratio: u32,
    logits: TensorSpec,
}

impl IndexLogitsSpec {
    /// Over a contiguous cache of keys; lens are q_lens and kv_lens.
    pub fn new(
        q: &TensorSpec,
        k: &TensorSpec,
        weights: &TensorSpec,
        lens: [&LensSpec; 2],
        ratio: u32,
        logits: &TensorSpec,
    ) -> Result<Self> {
        Self::checked([q, k, weights, logits], [None, None], lens, ratio)
    }

    /// Over a contiguous cache of codes and its scales, one for each key.
    pub fn quantized(
        q: &TensorSpec,
        [k, k_scale]: [&TensorSpec; 2],
        weights: &TensorSpec,
        lens: [&LensSpec; 2],
        ratio: u32,
        logits: &TensorSpec,
    ) -> Result<Self> {
        Self::checked([q, k, weights, logits], [Some(k_scale), None], lens, ratio)
    }

    /// Over a paged cache of codes and its scales, one for each key.
    pub fn quantized_paged(
        q: &TensorSpec,
        [k, k_scale]: [&TensorSpec; 2],
        block_table: &TensorSpec,
        weights: &TensorSpec,
        lens: [&LensSpec; 2],
        ratio: u32,
        logits: &TensorSpec,
    ) -> Result<Self> {
        let tables = [Some(k_scale), Some(block_table)];
        Self::checked([q, k, weights, logits], tables, lens, ratio)
    }

    /// Over a paged cache of keys; lens are q_lens and kv_lens.
    pub fn paged(
        q: &TensorSpec,
        k: &TensorSpec,
        block_table: &TensorSpec,
        weights: &TensorSpec,
        lens: [&LensSpec; 2],
        ratio: u32,
        logits: &TensorSpec,
    ) -> Result<Self> {
        Self::checked([q, k, weights, logits], [None, Some(block_table)], lens, ratio)
    }

    fn checked(
        [q, k, weights, logits]: [&TensorSpec; 4],
        [k_scale, block_table]: [Option<&TensorSpec>; 2],
        [q_lens, kv_lens]: [&LensSpec; 2],
        ratio: u32,
    ) -> Result<Self> {
        let capacity = cache_room(NAME, ("k", k), 3, block_table, ("kv_lens", kv_lens))?;
        expect_rank(NAME, "q", q, 3)?;
        expect_dtype(NAME, "q", q, &[DType::F32, DType::F16, DType::BF16])?;
        let narrow = q.dtype() == DType::F32 && matches!(k.dtype(), DType::F16 | DType::BF16);
        if let Some(k_scale) = k_scale {
            expect_scaled(NAME, ["k", "k_scale"], k, k_scale)?;
        } else if k.dtype() != q.dtype() && !narrow {
            return Err(OpError::dtype(NAME, "k", k.dtype(), format!("{} or narrower", q.dtype())));
        }
        if q.dims()[2] != k.dims()[2] {
            return Err(OpError::shape(
                NAME,
                format!("q is {}, k is {}: head_dim differs", q.shape(), k.shape()),
            ));
        }
        let (tokens, heads) = (q.dims()[0], q.dims()[1]);
        expect_dims(NAME, "weights", weights, &[tokens, heads])?;
        expect_dtype(NAME, "weights", weights, &[DType::F32])?;
        if q_lens.count() != kv_lens.count() {
            return Err(OpError::shape(
                NAME,
                format!("q_lens has {} sequences, kv_lens {}", q_lens.count(), kv_lens.count()),
            ));
        }
        q_lens.expect_fit(NAME, "q_lens", tokens)?;
        expect_rank(NAME, "logits", logits, 2)?;
        expect_dims(NAME, "logits", logits, &[tokens, logits.dims()[1]])?;
        expect_dtype(NAME, "logits", logits, &[DType::F32])?;
        expect_writable(NAME, "logits", logits)?;
        if ratio == 0 {
            return Err(OpError::attribute(NAME, "ratio", "is 0, expected at least 1"));
        }
        let keys = (kv_lens.max() / ratio) as usize;
        for (held, what) in [(capacity, "the cache holds"), (logits.dims()[1], "a row of logits holds")] {
            if keys > held {
                let what = format!("may reach {} and so {keys} keys, {what} {held}", kv_lens.max());
                return Err(OpError::attribute(NAME, "kv_lens", what));
            }
        }
        Ok(Self {
            q: *q,
            k: *k,
            k_scale: k_scale.copied(),
            block_table: block_table.copied(),
            weights: *weights,
            q_lens: q_lens.clone(),
            kv_lens: kv_lens.clone(),
            ratio,
            logits: *logits,
        })
    }

    /// Queries.
    pub fn q(&self) -> &TensorSpec {
        &self.q
    }
    /// Keys.
    pub fn k(&self) -> &TensorSpec {
        &self.k
    }
    /// Scales of keys that are codes.
    pub fn k_scale(&self) -> Option<&TensorSpec> {
        self.k_scale.as_ref()
    }
    /// Pages of each sequence, of a paged cache.
    pub fn block_table(&self) -> Option<&TensorSpec> {
        self.block_table.as_ref()
    }
    /// Weights of the heads.
    pub fn weights(&self) -> &TensorSpec {
        &self.weights
    }
    /// Tokens of each sequence in this call.
    pub fn q_lens(&self) -> &LensSpec {
        &self.q_lens
    }
    /// Tokens of each sequence, this call's included.
    pub fn kv_lens(&self) -> &LensSpec {
        &self.kv_lens
    }
    /// Tokens one key stands for.
    pub fn ratio(&self) -> u32 {
        self.ratio
    }
    /// Result.
    pub fn logits(&self) -> &TensorSpec {
        &self.logits
    }
    /// Keys of a sequence at most.
    pub fn max_keys(&self) -> usize {
        (self.kv_lens.max() / self.ratio) as usize
    }
    /// Keys that token `t` of `q_len` sees in a sequence of `kv_len` tokens.
    pub fn visible(&self, t: usize, q_len: usize, kv_len: usize) -> usize {
        (kv_len + t + 1).saturating_sub(q_len).min(kv_len) / self.ratio as usize
    }
}

/// `Σ_{x = 0}^{n − 1} ⌊x / ratio⌋`.
fn floors(n: u64, ratio: u64) -> u128 {
    let (whole, rest) = (u128::from(n / ratio), u128::from(n % ratio));
    // Each quotient below `whole` comes `ratio` times, the last one `rest` times.
    u128::from(ratio) * whole * whole.saturating_sub(1) / 2 + whole * rest
}

impl Contract for IndexLogitsSpec {
    fn name(&self) -> &'static str {
        NAME
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "q", spec: &self.q, access: Access::Read });
        visit(Operand { name: "k", spec: &self.k, access: Access::Read });
        if let Some(spec) = &self.k_scale {
            visit(Operand { name: "k_scale", spec, access: Access::Read });
        }
        if let Some(spec) = &self.block_table {
            visit(Operand { name: "block_table", spec, access: Access::Read });
        }
        visit(Operand { name: "weights", spec: &self.weights, access: Access::Read });
        visit(Operand { name: "q_lens", spec: self.q_lens.device(), access: Access::Read });
        visit(Operand { name: "kv_lens", spec: self.kv_lens.device(), access: Access::Read });
        visit(Operand { name: "logits", spec: &self.logits, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let (heads, dim) = (self.q.dims()[1] as u128, self.q.dims()[2]);
        let (mut pairs, mut keys, mut left) = (0u128, 0u128, self.q.dims()[0] as u64);
        for b in 0..self.q_lens.count() {
            let q_len = u64::from(self.q_lens.bound(b)).min(left);
            let kv_len = u64::from(self.kv_lens.bound(b));
            left -= q_len;
            let ratio = u64::from(self.ratio);
            // A row at position p sees ⌊(p + 1) / ratio⌋ keys; rows before the sequence's start see none.
            pairs += floors(kv_len + 1, ratio) - floors(kv_len + 1 - q_len.min(kv_len), ratio);
            keys += if q_len == 0 { 0 } else { u128::from(kv_len / ratio) };
        }
        let clamp = |x: u128| u64::try_from(x).unwrap_or(u64::MAX);
        let table = self.block_table.map_or(0, |table| table.bytes());
        let lens = self.q_lens.device().bytes() + self.kv_lens.device().bytes();
        let read = [self.q.bytes(), self.weights.bytes(), table, lens];
        let scale = if self.k_scale.is_some() { DType::F32.bytes_for(1) } else { 0 };
        let entries = clamp(keys.saturating_mul((self.k.dtype().bytes_for(dim) + scale) as u128));
        Cost {
            flops: clamp(pairs.saturating_mul(2 * (dim as u128 + 1)).saturating_mul(heads)),
            bytes_read: read.iter().fold(entries, |sum, &bytes| sum.saturating_add(bytes as u64)),
            bytes_written: self.logits.bytes() as u64,
            bytes_comm: 0,
        }
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let paged = usize::from(self.block_table.is_some());
        let (k, rest) = take_entries(&self.k, self.k_scale.as_ref(), &inputs[1..]);
        let (q, table) = (inputs[0], rest[0]);
        let (weights, q_lens, kv_lens) = (rest[paged], rest[1 + paged], rest[2 + paged]);
        let (tokens, heads, dim) = (self.q.dims()[0], self.q.dims()[1], self.q.dims()[2]);
        let (c, width) = (self.k.dims(), self.logits.dims()[1]);
        let mut logits = vec![f64::NEG_INFINITY; tokens * width];
        let mut first = 0;
        for b in 0..self.q_lens.count() {
            let q_len = (q_lens[b].max(0.0) as usize).min(tokens - first);
            let kv_len = (kv_lens[b].max(0.0) as usize).min(self.kv_lens.max() as usize);
            for t in 0..q_len {
                for j in 0..self.visible(t, q_len, kv_len) {
                    let row = match &self.block_table {
                        Some(spec) => paged_row(table, [c[0], c[1], 1, dim], [spec.dims()[1], b, j, 0]),
                        None => Some(b * c[1] + j),
                    };
                    let Some(row) = row else { continue };
                    let key = &k[row * dim..(row + 1) * dim];
                    let mut sum = 0.0;
                    for at in (first + t) * heads..(first + t + 1) * heads {
                        let dot: f64 = q[at * dim..(at + 1) * dim].iter().zip(key).map(|(q, k)| q * k).sum();
                        sum += weights[at] * dot.max(0.0);
                    }
                    logits[(first + t) * width + j] = sum;
                }
            }
            first += q_len;
        }
        vec![logits]
    }

    /// With factors in [−1, 1] and `u` the f32 roundoff: each of the heads' terms errs by at most
    /// `2·(head_dim + 8)·u`, as a score of attention does. A product of random signs is of the order of √head_dim,
    /// so a partial sum over heads is of the order of √(heads·head_dim), and √heads roundings of it add up;
    /// 4 times that is allowed. Keys that are `scale · code` are rounded once, which adds `head_dim·u` to each term.
    fn tolerance(&self) -> Vec<Tolerance> {
        let (heads, dim) = (self.q.dims()[1] as f64, self.q.dims()[2] as f64);
        let u = DType::F32.unit_roundoff();
        let scaled = if self.k_scale.is_some() { dim } else { 0.0 };
        vec![Tolerance { abs: heads * u * (2.0 * (dim + 8.0) + 4.0 * dim.sqrt() + scaled), rel: 2.0 * u }]
    }
}

/// Extents and lengths of one case: heads and head_dim, ratio, (tokens, all tokens) of each sequence, rows after
/// the last sequence.
type Batch = (&'static str, [usize; 2], u32, &'static [(u32, u32)], usize);

const BATCHES: [Batch; 13] = [
    ("empty_batch", [4, 8], 1, &[], 0),
    ("empty_tokens", [4, 8], 1, &[(0, 5)], 0),
    ("only_padding", [4, 8], 1, &[], 3),
    ("no_heads", [0, 8], 1, &[(2, 9)], 0),
    ("no_keys", [4, 8], 4, &[(2, 3)], 0),
    ("one", [1, 1], 1, &[(1, 1)], 0),
    ("before_the_start", [2, 8], 1, &[(5, 3), (2, 2)], 0),
    ("unaligned", [3, 19], 1, &[(7, 11), (0, 4), (1, 60)], 2),
    ("ratio_4", [5, 32], 4, &[(9, 50), (3, 3), (1, 203)], 1),
    ("ratio_128", [16, 32], 128, &[(3, 700), (1, 127)], 0),
    ("decode", [64, 128], 1, &[(1, 530), (1, 1)], 0),
    ("prefill", [64, 32], 1, &[(70, 70)], 0),
    ("many_heads", [70, 16], 4, &[(20, 120)], 0),
];

impl Cases for IndexLogitsSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for (q_type, k_type) in [
            (DType::F32, DType::F32),
            (DType::F16, DType::F16),
            (DType::BF16, DType::BF16),
            (DType::F32, DType::BF16),
            (DType::F32, DType::F16),
            (DType::F32, DType::I8),
            (DType::BF16, DType::F8E4M3),
            (DType::F32, DType::F8E5M2),
        ] {
            for (edge, [heads, dim], ratio, batch, padding) in BATCHES {
                let tokens = batch.iter().map(|l| l.0 as usize).sum::<usize>() + padding;
                let max = batch.iter().map(|l| l.1).max().unwrap_or(0);
                let keys = (max / ratio) as usize;
                let q = TensorSpec::of(q_type, &[tokens, heads, dim])?;
                let weights = TensorSpec::of(DType::F32, &[tokens, heads])?;
                let logits = TensorSpec::of(DType::F32, &[tokens, keys + 2])?;
                let device = TensorSpec::of(DType::I32, &[batch.len()])?;
                let lens = |arg, pick: fn(&(u32, u32)) -> u32| {
                    let host: Vec<u32> = batch.iter().map(pick).collect();
                    let spec = LensSpec::new(NAME, arg, &device, host.iter().copied().max().unwrap_or(0))?;
                    if padding > 0 { Ok(spec) } else { spec.with_host(NAME, arg, host.into()) }
                };
                let (q_lens, kv_lens) = (lens("q_lens", |l| l.0)?, lens("kv_lens", |l| l.1)?);
                let flat = TensorSpec::of(k_type, &[batch.len(), keys + 1, dim])?;
                let (page_size, max_pages) = (16, keys.div_ceil(16) + 1);
                let num_pages = (batch.len() * max_pages).max(1);
                let pages = TensorSpec::of(k_type, &[num_pages, page_size, dim])?;
                let table = TensorSpec::of(DType::I32, &[batch.len(), max_pages])?;
                let order = (0..num_pages).rev().map(|page| page as f64).collect();
                let lens = [&q_lens, &kv_lens];
                let scaled = CODES.contains(&k_type);
                let forms = if scaled {
                    let own = |k: &TensorSpec| TensorSpec::of(DType::F32, &k.dims()[..2]);
                    let (of_flat, of_pages) = (own(&flat)?, own(&pages)?);
                    let paged = [&pages, &of_pages];
                    [
                        Self::quantized(&q, [&flat, &of_flat], &weights, lens, ratio, &logits)?,
                        Self::quantized_paged(&q, paged, &table, &weights, lens, ratio, &logits)?,
                    ]
                } else {
                    [
                        Self::new(&q, &flat, &weights, lens, ratio, &logits)?,
                        Self::paged(&q, &pages, &table, &weights, lens, ratio, &logits)?,
                    ]
                };
                for (form, spec) in ["contiguous", "paged"].into_iter().zip(forms) {
                    let values = |pick: fn(&(u32, u32)) -> u32| {
                        Fill::Values(batch.iter().map(|l| f64::from(pick(l))).collect())
                    };
                    let mut case = Case::new(format!("{NAME}/{q_type}_{k_type}/{edge}/{form}"), spec)
                        .fill("block_table", Fill::Values(Vec::clone(&order)))
                        .fill("q_lens", values(|l| l.0))
                        .fill("kv_lens", values(|l| l.1));
                    if scaled {
                        let [codes, scales] = code_fills(k_type);
                        case = case.fill("k", codes).fill("k_scale", scales);
                    }
                    cases.push(case);
                }
            }
        }
        // Keys as columns of wider rows, queries with heads outermost, logits as columns.
        let q = TensorSpec::of(DType::F32, &[6, 5, 12])?.transpose(0, 1)?;
        let k = TensorSpec::of(DType::F16, &[1, 40, 20])?.narrow(2, 4, 12)?;
        let weights = TensorSpec::of(DType::F32, &[6, 5])?.transpose(0, 1)?;
        let logits = TensorSpec::of(DType::F32, &[40, 5])?.transpose(0, 1)?;
        let lens = LensSpec::new(NAME, "lens", &TensorSpec::of(DType::I32, &[1])?, 40)?;
        let spec = Self::new(&q, &k, &weights, [&lens, &lens], 1, &logits)?;
        cases.push(
            Case::new(format!("{NAME}/strided"), spec)
                .fill("q_lens", Fill::Values(vec![4.0]))
                .fill("kv_lens", Fill::Values(vec![33.0])),
        );
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    fn of([tokens, keys]: [usize; 2], kv_len: u32, ratio: u32) -> Result<IndexLogitsSpec> {
        let lens = LensSpec::new(NAME, "lens", &spec(DType::I32, &[1]), kv_len).unwrap();
        let (q, k) = (spec(DType::F32, &[tokens, 2, 1]), spec(DType::F32, &[1, keys, 1]));
        let (weights, logits) = (spec(DType::F32, &[tokens, 2]), spec(DType::F32, &[tokens, keys]));
        IndexLogitsSpec::new(&q, &k, &weights, [&lens, &lens], ratio, &logits)
    }

    #[test]
    fn negative_products_count_for_nothing() {
        let got =
            of([1, 2], 2, 1).unwrap().reference(&[&[1.0, -2.0], &[3.0, -5.0], &[10.0, 0.5], &[1.0], &[2.0]]);
        assert_eq!(got, [vec![30.0, 5.0]]);
    }

    #[test]
    fn a_key_is_seen_from_its_last_token_on() {
        let s = of([9, 2], 9, 4).unwrap();
        let got = s.reference(&[&[1.0; 18], &[1.0, 2.0], &[0.5; 18], &[9.0], &[9.0]]);
        let seen: Vec<usize> =
            got[0].chunks(2).map(|row| row.iter().filter(|x| x.is_finite()).count()).collect();
        assert_eq!(seen, [0, 0, 0, 1, 1, 1, 1, 2, 2]);
        assert_eq!((8..17).map(|n| floors(n, 4)).collect::<Vec<_>>(), [4, 6, 8, 10, 12, 15, 18, 21, 24]);
        let host = of([9, 2], 9, 4).unwrap();
        assert_eq!(host.cost().flops, 2 * (1 + 1) * 2 * seen.iter().sum::<usize>() as u64);
    }

    #[test]
    fn more_keys_than_a_row_holds_are_refused() {
        let e = of([1, 2], 12, 4).unwrap_err();
        assert_eq!(e.to_string(), "index_logits: kv_lens may reach 12 and so 3 keys, the cache holds 2");
        assert!(of([1, 2], 11, 4).is_ok() && of([1, 2], 1, 0).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(IndexLogitsSpec::cases().unwrap().len() > 100);
    }
}
