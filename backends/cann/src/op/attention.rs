//! Attention over contiguous caches: the vendor's fused kernel, which takes 16-bit heads, lengths on the host, and as
//! many queries in each sequence; a batch of several such is a call each.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{AclInts, AclTensor, AclTensors, NONE};
use crate::memory;
use crate::product::Product;
use crate::version::FusedInferAttentionScore;
use core::ops::Range;
use portolan_core::sync::lock;
use portolan_core::{Call, Tensor};
use portolan_ops::attention::{AttentionMask, AttentionQuery, AttentionSpec};
use portolan_ops::{DType, OpError, Result, TensorSpec, Unsupported};

/// Rows and columns of the mask that the kernel's causal modes read.
const COMPRESSED: usize = 2048;
/// No bound.
const EVERYTHING: i64 = i32::MAX as i64;
/// `innerPrecise`: high precision, and zeros for rows without a visible key.
const PRECISE: i64 = 2;

/// What the vendor calls a mask.
enum Sparse {
    /// None: every key of a sequence.
    All,
    /// Keys up to the query's own, counted from the right end.
    Causal,
    /// So many of them.
    Band(i64),
}

/// Calls of one launch at most: neighbouring sequences with as many queries share one.
const MOST_CALLS: usize = 8;

/// Neighbouring sequences with as many queries.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    sequences: Range<usize>,
    /// Queries of each, and the first one's row.
    queries: usize,
    first: usize,
}

/// Sequences that have queries, in parts of one call each.
fn parts(q_lens: &[u32]) -> Vec<Part> {
    let (mut parts, mut first): (Vec<Part>, usize) = (Vec::new(), 0);
    for (sequence, &len) in q_lens.iter().enumerate() {
        let queries = len as usize;
        match parts.last_mut() {
            Some(part) if part.queries == queries && part.sequences.end == sequence => {
                part.sequences.end += 1
            }
            _ if queries == 0 => {}
            _ => parts.push(Part { sequences: sequence..sequence + 1, queries, first }),
        }
        first += queries;
    }
    parts
}

fn sparse(query: &AttentionQuery, queries: usize) -> Sparse {
    match query.mask() {
        AttentionMask::Full => Sparse::All,
        // The one query of a sequence is its last token, before which there is nothing that it may not see.
        AttentionMask::Causal if queries == 1 => Sparse::All,
        AttentionMask::Causal => Sparse::Causal,
        AttentionMask::Window(window) => Sparse::Band(i64::from(window) - 1),
    }
}

/// Whether a version takes rotary parts apart from the heads, where there are such.
fn says(rotary: bool) -> impl Fn(FusedInferAttentionScore) -> bool {
    move |version| !rotary || version != FusedInferAttentionScore::V2
}

/// Whether the fused kernel takes such a call; `rotary`: with rotary parts apart from the heads.
pub(super) fn plan_query(
    soc: &Soc<'_>,
    query: &AttentionQuery,
    cache: [&TensorSpec; 2],
    rotary: bool,
) -> Plan {
    soc.promises_rows()?;
    let dtype = query.q().dtype();
    let halves = matches!(dtype, DType::F16 | DType::BF16);
    if !halves || soc.product == Product::P310 {
        return Err(Unsupported::DType(dtype));
    }
    for spec in cache.into_iter().chain([query.out()]) {
        if spec.dtype() != dtype {
            return Err(Unsupported::DType(spec.dtype()));
        }
    }
    // Sinks join a newer version's sums, in 16 bits.
    if !query.scores().is_plain() || query.scores().sinks().is_some() {
        return Err(Unsupported::NotImplemented);
    }
    let Some(all) = query.kv_lens().host() else { return Err(Unsupported::HostLengths) };
    let Some(new) = query.q_lens().host() else { return Err(Unsupported::HostLengths) };
    if new.iter().zip(all.iter()).any(|(new, all)| new > all) {
        return Err(Unsupported::Shape("a visible key for each query"));
    }
    if parts(new).len() > MOST_CALLS {
        return Err(Unsupported::Shape("at most 8 changes of the number of queries"));
    }
    soc.has_version(says(rotary))
}

/// Whether it takes heads of this length, whose values are as long.
pub(super) fn plan_heads(query: &AttentionQuery) -> Plan {
    let d = query.head_dim();
    match d.is_multiple_of(16) && (16..=512).contains(&d) && query.v_head_dim() == d {
        true => Ok(()),
        false => Err(Unsupported::Shape("heads of a multiple of 16 elements, at most 512")),
    }
}

/// Whether it takes pages of so many positions.
pub(super) fn plan_pages(positions: usize) -> Plan {
    match positions.is_multiple_of(16) && (16..=1024).contains(&positions) {
        true => Ok(()),
        false => Err(Unsupported::Shape("pages of a multiple of 16 positions, at most 1024")),
    }
}

impl Native for AttentionSpec {
    fn plan(&self, soc: &Soc<'_>) -> Plan {
        plan_heads(self.query())?;
        plan_query(soc, self.query(), [self.k(), self.v()], false)
    }

    fn launch(run: &Run<'_, '_>, op: &Call<Self>) -> Result<()> {
        let (k, v) = (op.require("k")?, op.require("v")?);
        let call = Fused {
            query: op.spec().query(),
            keys: k,
            values: v,
            rotary: None,
            table: None,
            page: 0,
            lse: op.tensor("lse"),
        };
        call.launch(run, &op.require("q")?, &op.require("out")?)
    }
}

/// One call of the fused kernel.
pub(super) struct Fused<'a> {
    pub(super) query: &'a AttentionQuery,
    pub(super) keys: Tensor,
    pub(super) values: Tensor,
    /// Rotary parts of the queries and of the keys, where they are apart: they count for the scores only.
    pub(super) rotary: Option<[Tensor; 2]>,
    /// Pages of every sequence, and positions of a page.
    pub(super) table: Option<Tensor>,
    pub(super) page: i64,
    pub(super) lse: Option<Tensor>,
}

impl Fused<'_> {
    pub(super) fn launch(&self, run: &Run<'_, '_>, q: &Tensor, out: &Tensor) -> Result<()> {
        let internal = || OpError::internal("attention", "lengths are not on the host");
        let new = self.query.q_lens().host().ok_or_else(internal)?;
        let all = self.query.kv_lens().host().ok_or_else(internal)?;
        let dense = out.spec().is_contiguous();
        let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
        let parts = parts(new);
        let bounded = parts.iter().any(|part| !matches!(sparse(self.query, part.queries), Sparse::All));
        let mask = if bounded { Some(Triangle::of(run)?) } else { None };
        for part in &parts {
            let lens: Vec<i64> = all[part.sequences.clone()].iter().map(|&len| i64::from(len)).collect();
            self.part(run, part, &lens, mask.as_ref(), [q, &result])?;
        }
        // Rows past the last sequence are nobody's.
        let (used, rows) = (new.iter().map(|&len| len as usize).sum::<usize>(), out.dims()[0]);
        if used < rows {
            run.zero(&result.narrow(0, used, rows - used)?)?;
            if let Some(lse) = &self.lse {
                run.fill(&lse.narrow(0, used, rows - used)?, f64::NEG_INFINITY)?;
            }
        }
        if dense { Ok(()) } else { run.copy(&result, out) }
    }

    /// One call, of sequences with as many queries.
    fn part(
        &self,
        run: &Run<'_, '_>,
        part: &Part,
        lens: &[i64],
        mask: Option<&Triangle<'_>>,
        [q, out]: [&Tensor; 2],
    ) -> Result<()> {
        let query = self.query;
        let (batch, count, first) = (lens.len(), part.queries, part.first);
        let (heads, d) = (query.num_heads(), query.v_head_dim());
        let sums = match &self.lse {
            Some(_) => Some(run.scratch(DType::F32, &[batch, heads, count, 1])?),
            None => None,
        };
        let (sparse_mode, before) = match sparse(query, count) {
            Sparse::All => (0i64, EVERYTHING),
            Sparse::Causal => (3, EVERYTHING),
            Sparse::Band(before) => (4, before),
        };
        // Pages are all sequences', rows of a cache are each one's own.
        let own = |x: &Tensor| match &self.table {
            Some(_) => Ok(x.clone()),
            None => x.narrow(0, part.sequences.start, batch),
        };
        let table = match &self.table {
            Some(table) => Some(run.tensor(&table.narrow(0, part.sequences.start, batch)?)?),
            None => None,
        };
        // Queries may be a part of what the layer's product gave; its rows divide into sequences as they are.
        let by_sequence = |q: &Tensor| {
            let (rows, dims) = (q.narrow(0, first, batch * count)?, [batch, count, heads, q.dims()[2]]);
            rows.reshape(&dims).or_else(|_| super::scatter::contiguous(run, &rows)?.reshape(&dims))
        };
        let q_view = by_sequence(q)?;
        let rotary = match &self.rotary {
            Some([queries, keys]) => Some([run.tensor(&by_sequence(queries)?)?, run.tensor(&own(keys)?)?]),
            None => None,
        };
        let out_view = out.narrow(0, first, batch * count)?.reshape(&[batch, count, heads, d])?;
        self.call(
            run,
            Operands {
                q: run.tensor(&q_view)?,
                keys: run.tensors(&[&own(&self.keys)?])?,
                values: run.tensors(&[&own(&self.values)?])?,
                out: run.tensor(&out_view)?,
                sums: sums.as_ref().map(|sums| run.tensor(sums)).transpose()?,
                mask: mask.map(|mask| &mask.mask).filter(|_| sparse_mode != 0),
                table,
                rotary,
                lens: run.ints(lens)?,
            },
            (sparse_mode, before),
        )?;
        if let (Some(lse), Some(sums)) = (&self.lse, &sums) {
            // From heads of sequences to heads of tokens.
            let by_token = sums.reshape(&[batch, heads, count])?.transpose(1, 2)?;
            let lse = lse.narrow(0, first, batch * count)?.reshape(&[batch, count, heads])?;
            run.copy(&by_token, &lse)?;
        }
        Ok(())
    }

    fn call(&self, run: &Run<'_, '_>, with: Operands<'_>, (sparse_mode, before): (i64, i64)) -> Result<()> {
        let query = self.query;
        let (heads, kv_heads) = (query.num_heads() as i64, query.num_kv_heads() as i64);
        let scale = f64::from(query.scale());
        let (after, mode, wants_sums) =
            (if sparse_mode == 0 { EVERYTHING } else { 0 }, 0i64, with.sums.is_some());
        let none = NONE;
        let no_lens: Option<AclInts<'_>> = None;
        let (q_rotary, k_rotary) = with.rotary.map(|[q, k]| (q, k)).unzip();
        /// A version's arguments: what newer ones have more goes before the numbers and behind them.
        macro_rules! fused {
            ($plan:ident, $enqueue:ident, [$($tensor:expr),*], [$($number:expr),*]) => {
                aclnn!(
                    run,
                    $plan,
                    $enqueue,
                    with.q,
                    with.keys,
                    with.values,
                    none, // pseShift
                    with.mask,
                    no_lens, // actualSeqLengths: all of a sequence's queries
                    with.lens,
                    none, // deqScale1, quantScale1, deqScale2, quantScale2, quantOffset2
                    none,
                    none,
                    none,
                    none,
                    none, // antiquantScale, antiquantOffset
                    none,
                    with.table,
                    none, // queryPaddingSize, kvPaddingSize
                    none,
                    none, // scales and offsets of quantized keys and values
                    none,
                    none,
                    none,
                    none, // shared prefixes
                    none,
                    no_lens,
                    $($tensor,)*
                    heads,
                    scale,
                    before,
                    after,
                    c"BSND",
                    kv_heads,
                    sparse_mode,
                    PRECISE,
                    self.page,
                    mode,
                    wants_sums,
                    mode,
                    mode,
                    $($number,)*
                    with.out,
                    with.sums
                )
            };
        }
        // Behind the rotary parts: the scale of keyRope, that of the query, sinks, where sequences start; the modes of
        // quantized queries and of pseShift.
        match run.newest(says(self.rotary.is_some()))? {
            FusedInferAttentionScore::V5 => fused!(
                aclnnFusedInferAttentionScoreV5GetWorkspaceSize,
                aclnnFusedInferAttentionScoreV5,
                [q_rotary, k_rotary, none, none, none, no_lens, no_lens],
                [mode, mode]
            ),
            FusedInferAttentionScore::V4 => fused!(
                aclnnFusedInferAttentionScoreV4GetWorkspaceSize,
                aclnnFusedInferAttentionScoreV4,
                [q_rotary, k_rotary, none, none, none],
                [mode]
            ),
            FusedInferAttentionScore::V3 => fused!(
                aclnnFusedInferAttentionScoreV3GetWorkspaceSize,
                aclnnFusedInferAttentionScoreV3,
                [q_rotary, k_rotary, none],
                []
            ),
            FusedInferAttentionScore::V2 => fused!(
                aclnnFusedInferAttentionScoreV2GetWorkspaceSize,
                aclnnFusedInferAttentionScoreV2,
                [],
                []
            ),
        }
    }
}

struct Operands<'a> {
    q: AclTensor<'a>,
    keys: AclTensors<'a>,
    values: AclTensors<'a>,
    out: AclTensor<'a>,
    sums: Option<AclTensor<'a>>,
    mask: Option<&'a AclTensor<'a>>,
    table: Option<AclTensor<'a>>,
    rotary: Option<[AclTensor<'a>; 2]>,
    lens: AclInts<'a>,
}

/// Ones above the diagonal: what the kernel's causal modes take for a mask of any size.
struct Triangle<'a> {
    mask: AclTensor<'a>,
    /// Where it is, unless the device keeps it.
    _scratch: Option<Tensor>,
}

impl<'a> Triangle<'a> {
    /// The one that the device keeps, from its first use on; while a graph is recorded and there is none yet, one of the
    /// launch's own.
    fn of(run: &'a Run<'_, '_>) -> Result<Self> {
        let spec = TensorSpec::of(DType::Bool, &[COMPRESSED, COMPRESSED])?;
        if let Some((stream, on)) = run.target() {
            let mut kept = lock(&on.driver.device(on.device)?.triangle);
            if kept.is_none() && !stream.is_recorded() {
                let row = |i: usize| (0..COMPRESSED).map(move |j| u8::from(j > i));
                let bytes: Vec<u8> = (0..COMPRESSED).flat_map(row).collect();
                *kept = Some(memory::constant(on, &bytes)?);
            }
            if let Some(address) = *kept {
                return Ok(Self { mask: run.memory(&spec, address)?, _scratch: None });
            }
        }
        let ones = run.full(DType::Bool, spec.dims(), 1.0)?;
        let mask = run.scratch(DType::Bool, spec.dims())?;
        let (from, to) = (run.tensor(&ones)?, run.tensor(&mask)?);
        aclnn!(run, aclnnTriuGetWorkspaceSize, aclnnTriu, from, 1i64, to)?;
        Ok(Self { mask: to, _scratch: Some(mask) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_with_as_many_queries_share_a_call() {
        let part = |sequences, queries, first| Part { sequences, queries, first };
        assert_eq!(parts(&[1, 1, 1]), [part(0..3, 1, 0)]);
        assert_eq!(parts(&[5, 1, 1, 5]), [part(0..1, 5, 0), part(1..3, 1, 5), part(3..4, 5, 7)]);
        // What has no queries is between others, not among them.
        assert_eq!(parts(&[0, 2, 0, 2, 2]), [part(1..2, 2, 0), part(3..5, 2, 2)]);
        assert_eq!(parts(&[0, 0]), []);
    }
}
