//! Attention over contiguous caches: the vendor's fused kernel, which takes 16-bit heads, lengths on the host, and as
//! many queries in each sequence.

use super::Native;
use crate::aclnn::{Plan, Run, Soc, aclnn};
use crate::descriptor::{AclInts, AclTensor, NONE};
use crate::product::Product;
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

/// How many queries each sequence has: as many in all.
fn queries(query: &AttentionQuery) -> Option<usize> {
    let lens = query.q_lens().host()?;
    let first = *lens.first()? as usize;
    (lens.iter().all(|&len| len as usize == first) && first * lens.len() == query.tokens()).then_some(first)
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

/// Whether the fused kernel takes such a call.
pub(super) fn plan_query(soc: &Soc<'_>, query: &AttentionQuery, cache: [&TensorSpec; 2]) -> Plan {
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
    if query.q_lens().host().is_none() {
        return Err(Unsupported::HostLengths);
    }
    let count = queries(query).ok_or(Unsupported::Shape("as many queries in each sequence"))?;
    if all.iter().any(|&len| (len as usize) < count.max(1)) {
        return Err(Unsupported::Shape("a visible key for each query"));
    }
    soc.has("aclnnFusedInferAttentionScoreV3GetWorkspaceSize")
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
        plan_query(soc, self.query(), [self.k(), self.v()])
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
        let query = self.query;
        let internal = || OpError::internal("attention", "lengths are not on the host");
        let count = queries(query).ok_or_else(internal)?;
        let all: Vec<i64> =
            query.kv_lens().host().ok_or_else(internal)?.iter().map(|&n| i64::from(n)).collect();
        let (batch, heads, d) = (all.len(), query.num_heads(), query.v_head_dim());
        let dense = out.spec().is_contiguous();
        let result = if dense { out.clone() } else { run.scratch(out.dtype(), out.dims())? };
        let sums = match &self.lse {
            Some(_) => Some(run.scratch(DType::F32, &[batch, heads, count, 1])?),
            None => None,
        };
        let (sparse_mode, before) = match sparse(query, count) {
            Sparse::All => (0i64, EVERYTHING),
            Sparse::Causal => (3, EVERYTHING),
            Sparse::Band(before) => (4, before),
        };
        let hidden = if sparse_mode == 0 { None } else { Some(triangle(run)?) };
        let mask = hidden.as_ref().map(|mask| run.tensor(mask)).transpose()?;
        let table = self.table.as_ref().map(|table| run.tensor(table)).transpose()?;
        // Queries may be a part of what the layer's product gave; its rows divide into sequences as they are.
        let by_sequence = |q: &Tensor| {
            let dims = [batch, count, heads, q.dims()[2]];
            q.reshape(&dims).or_else(|_| super::scatter::contiguous(run, q)?.reshape(&dims))
        };
        let q_view = by_sequence(q)?;
        let rotary = match &self.rotary {
            Some([queries, keys]) => Some([run.tensor(&by_sequence(queries)?)?, run.tensor(keys)?]),
            None => None,
        };
        let out_view = run.tensor(&result.reshape(&[batch, count, heads, d])?)?;
        self.call(
            run,
            Operands {
                q: run.tensor(&q_view)?,
                out: out_view,
                sums: sums.as_ref().map(|sums| run.tensor(sums)).transpose()?,
                mask,
                table,
                rotary,
                lens: run.ints(&all)?,
            },
            (sparse_mode, before),
        )?;
        if !dense {
            run.copy(&result, out)?;
        }
        if let (Some(lse), Some(sums)) = (&self.lse, &sums) {
            // From heads of sequences to heads of tokens.
            let by_token = sums.reshape(&[batch, heads, count])?.transpose(1, 2)?;
            let lse = lse.reshape(&[batch, count, heads])?;
            run.copy(&by_token, &lse)?;
        }
        Ok(())
    }

    fn call(&self, run: &Run<'_, '_>, with: Operands<'_>, (sparse_mode, before): (i64, i64)) -> Result<()> {
        let query = self.query;
        let (keys, values) = (run.tensors(&[&self.keys])?, run.tensors(&[&self.values])?);
        let (heads, kv_heads) = (query.num_heads() as i64, query.num_kv_heads() as i64);
        let scale = f64::from(query.scale());
        let (after, mode, wants_sums) =
            (if sparse_mode == 0 { EVERYTHING } else { 0 }, 0i64, with.sums.is_some());
        let none = NONE;
        let no_lens: Option<AclInts<'_>> = None;
        let (q_rotary, k_rotary) = with.rotary.map(|[q, k]| (q, k)).unzip();
        aclnn!(
            run,
            aclnnFusedInferAttentionScoreV3GetWorkspaceSize,
            aclnnFusedInferAttentionScoreV3,
            with.q,
            keys,
            values,
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
            q_rotary,
            k_rotary,
            none, // the scale of keyRope
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
            with.out,
            with.sums
        )
    }
}

struct Operands<'a> {
    q: AclTensor<'a>,
    out: AclTensor<'a>,
    sums: Option<AclTensor<'a>>,
    mask: Option<AclTensor<'a>>,
    table: Option<AclTensor<'a>>,
    rotary: Option<[AclTensor<'a>; 2]>,
    lens: AclInts<'a>,
}

/// Ones above the diagonal: what the kernel's causal modes take for a mask of any size.
fn triangle(run: &Run<'_, '_>) -> Result<Tensor> {
    let ones = run.full(DType::Bool, &[COMPRESSED, COMPRESSED], 1.0)?;
    let mask = run.scratch(DType::Bool, &[COMPRESSED, COMPRESSED])?;
    let (from, to) = (run.tensor(&ones)?, run.tensor(&mask)?);
    aclnn!(run, aclnnTriuGetWorkspaceSize, aclnnTriu, from, 1i64, to)?;
    Ok(mask)
}
