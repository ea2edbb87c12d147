//! Attention from two matrix products a group of sequences, with softmax between them over masked scores.
//!
//! Where keys lie is the caller's business: the paged form is in `paged_attention.rs`.

use super::begin;
use super::parts::Parts;
use super::ragged::Ragged;
use crate::call::{Attention, Fill, Gather, Gemm, Select};
use crate::launch::Launch;
use crate::op::{Call, Dispatch};
use crate::tensor::Tensor;
use portolan_ops::attention::{AttentionMask, AttentionQuery};
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, UnaryKind};
use portolan_ops::{DType, Result, Unsupported};

/// Scores of the sequences that are worked on at a time; at least one sequence is.
const SCORES_BYTES: usize = 64 << 20;

/// Queries padded to a rectangle, scores, masked softmax, weighted values, written back to their tokens.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn attention(l: &Launch<'_>, op: &Attention, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    attend(&p, op, op.spec().query(), &mut |_, cache, first, count| cache.narrow(0, first, count))
}

/// Which keys the tokens of each sequence see.
pub(super) struct Visible {
    /// Keys of each sequence, 0 where it has no token; `[batch, 1]`.
    pub(super) end: Tensor,
    /// The first key that any token sees, `[batch, 1]`; without a window all are seen.
    pub(super) start: Option<Tensor>,
    /// Keys at most.
    pub(super) max: usize,
}

/// Gives entries `[count, keys, num_kv_heads, ..]` of sequences `first..first + count` of a cache tensor.
pub(super) type Entries<'f> = dyn FnMut(&Visible, &Tensor, usize, usize) -> Result<Tensor> + 'f;

pub(super) fn attend<C: Dispatch>(
    p: &Parts<'_, '_>,
    op: &Call<C>,
    query: &AttentionQuery,
    entries: &mut Entries<'_>,
) -> Result<()> {
    let (q, out, lse) = (op.require("q")?, op.require("out")?, op.tensor("lse"));
    // What no token writes: rows without a visible key, and rows past the last sequence.
    p.run(Fill::new(&mut out.clone(), 0.0)?)?;
    if let Some(lse) = &lse {
        p.run(Fill::new(&mut lse.clone(), f64::NEG_INFINITY)?)?;
    }
    let (batch, keys) = (query.batch(), query.kv_lens().max() as usize);
    let max_q = (query.q_lens().max() as usize).min(query.tokens());
    if [batch, keys, max_q, query.num_heads()].contains(&0) {
        return Ok(());
    }
    let ragged = Ragged::new(p, &op.require("q_lens")?, &op.require("kv_lens")?, max_q)?;
    let visible = Visible::new(p, &ragged, query.mask(), keys)?;
    let group = Group { p, query, ragged: &ragged, visible: &visible, key: p.iota(keys)?, max_q };
    let bytes = query.num_heads().saturating_mul(max_q).saturating_mul(keys).saturating_mul(4);
    let step = (SCORES_BYTES / bytes).clamp(1, batch);
    for first in (0..batch).step_by(step) {
        let count = step.min(batch - first);
        let mut cache = |name| {
            let tensor = op.require(name)?;
            entries(&visible, &tensor, first, count)?.narrow(1, 0, keys)
        };
        let (k, v) = (cache("k")?, cache("v")?);
        group.run(&q, &k, &v, [first, count], &out, lse.as_ref())?;
    }
    Ok(())
}

impl Visible {
    fn new(p: &Parts<'_, '_>, ragged: &Ragged, mask: AttentionMask, max: usize) -> Result<Self> {
        let any = p.compare_scalar(CompareKind::Gt, &ragged.q_lens, 0.0)?;
        let end = p.select_or(&any, &ragged.kv_lens, 0.0)?;
        let start = match mask {
            AttentionMask::Window(window) => {
                // The first token's position is kv_len − q_len; it sees `window` keys up to its own.
                let first = p.binary(BinaryKind::Sub, &ragged.kv_lens, &ragged.q_lens)?;
                p.scalar_in_place(BinaryKind::Sub, &first, (window as usize).min(max) as f64 - 1.0)?;
                Some(first)
            }
            _ => None,
        };
        Ok(Self { end, start, max })
    }
}

/// What all groups of sequences share.
struct Group<'g, 'a, 'l> {
    p: &'g Parts<'a, 'l>,
    query: &'g AttentionQuery,
    ragged: &'g Ragged,
    visible: &'g Visible,
    /// 0, 1, 2, … up to the greatest number of keys.
    key: Tensor,
    max_q: usize,
}

impl Group<'_, '_, '_> {
    fn run(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        [first, count]: [usize; 2],
        out: &Tensor,
        lse: Option<&Tensor>,
    ) -> Result<()> {
        let (p, query, max_q, keys) = (self.p, self.query, self.max_q, self.visible.max);
        let (heads, kv_heads) = (query.num_heads(), query.num_kv_heads());
        let (d, dv) = (query.head_dim(), query.v_head_dim());
        let token = self.ragged.token.narrow(0, first, count)?;

        // The queries of the heads that share keys become the rows of one product.
        let queries = p.scratch(q.dtype(), &[count, heads, max_q, d])?;
        p.run(Gather::slices(q, 0, &token, &mut queries.transpose(1, 2)?)?)?;
        let rows = heads / kv_heads * max_q;
        let mut scores = p.scratch(DType::F32, &[count, kv_heads, rows, keys])?;
        let queries = queries.reshape(&[count, kv_heads, rows, d])?;
        p.run(Gemm::nt(&queries, &k.transpose(1, 2)?, &mut scores)?.alpha(query.scale())?)?;
        let scores = scores.reshape(&[count, heads, max_q, keys])?;
        let hidden = p.full(DType::F32, &[], f64::NEG_INFINITY)?;
        p.run(Select::new(&self.mask(first, count)?, &scores, &hidden, &mut scores.clone())?)?;

        let largest = p.reduce(ReduceKind::Max, &scores, 3)?;
        let blind = p.compare_scalar(CompareKind::Eq, &largest, f64::NEG_INFINITY)?;
        let largest = p.replace(&blind, 0.0, &largest)?;
        p.binary_in_place(BinaryKind::Sub, &scores, &largest)?;
        p.unary_in_place(UnaryKind::Exp, &scores)?;
        let sum = p.reduce(ReduceKind::Sum, &scores, 3)?;
        if let Some(lse) = lse {
            let logarithm = p.unary(UnaryKind::Log, &sum)?;
            p.binary_in_place(BinaryKind::Add, &logarithm, &largest)?;
            let src = logarithm.reshape(&[count, heads, max_q])?.transpose(1, 2)?;
            p.scatter_in_place(lse, &token, &src)?;
        }

        // Keys that nobody sees weigh 0, but 0 · NaN is NaN: what lies there must not be read.
        let end = self.visible.end.narrow(0, first, count)?;
        let mut seen = p.compare(CompareKind::Lt, &self.key, &end)?;
        if let Some(start) = &self.visible.start {
            let start = start.narrow(0, first, count)?;
            seen = p.binary(BinaryKind::And, &seen, &p.compare(CompareKind::Ge, &self.key, &start)?)?;
        }
        let v = p.select_or(&seen.reshape(&[count, keys, 1, 1])?, v, 0.0)?;
        let weights = scores.reshape(&[count, kv_heads, rows, keys])?;
        let values = self.weigh(&weights, &v.transpose(1, 2)?)?.reshape(&[count, heads, max_q, dv])?;
        p.binary_in_place(BinaryKind::Div, &values, &p.replace(&blind, 1.0, &sum)?)?;
        p.scatter_in_place(out, &token, &p.cast(&values, out.dtype())?.transpose(1, 2)?)
    }

    /// Weights times values, where a value that is not finite reaches only the rows that see its key: 0 · ∞ is
    /// NaN, so it takes no part in the product and is put in where its key has a weight.
    fn weigh(&self, weights: &Tensor, v: &Tensor) -> Result<Tensor> {
        let p = self.p;
        let product = |v: &Tensor| {
            let dims = [&weights.dims()[..3], &[self.query.v_head_dim()]].concat();
            let mut out = p.scratch(DType::F32, &dims)?;
            p.run(Gemm::nn(weights, v, &mut out)?)?;
            Ok::<_, portolan_ops::OpError>(out)
        };
        if self.query.mask() == AttentionMask::Full {
            return product(v);
        }
        let values = product(&p.select_or(&p.unary(UnaryKind::IsFinite, v)?, v, 0.0)?)?;
        let nothing = p.full(DType::F32, &[], 0.0)?;
        for (found, value) in [
            (p.compare_scalar(CompareKind::Eq, v, f64::INFINITY)?, f64::INFINITY),
            (p.compare_scalar(CompareKind::Eq, v, f64::NEG_INFINITY)?, f64::NEG_INFINITY),
            (p.unary(UnaryKind::IsNan, v)?, f64::NAN),
        ] {
            let seen = p.compare_scalar(CompareKind::Gt, &product(&p.cast(&found, v.dtype())?)?, 0.0)?;
            // A sum, so that both infinities give NaN.
            p.binary_in_place(BinaryKind::Add, &values, &p.replace(&seen, value, &nothing)?)?;
        }
        Ok(values)
    }

    /// Which keys each query of the group sees: `[count, 1, max_q or 1, keys]`.
    fn mask(&self, first: usize, count: usize) -> Result<Tensor> {
        let (p, keys) = (self.p, self.visible.max);
        if self.query.mask() == AttentionMask::Full {
            let end = self.visible.end.narrow(0, first, count)?;
            return p.compare(CompareKind::Lt, &self.key, &end)?.reshape(&[count, 1, 1, keys]);
        }
        // A token's own position is below its sequence's number of keys.
        let own = self.ragged.position.narrow(0, first, count)?.reshape(&[count, 1, self.max_q, 1])?;
        let causal = p.compare(CompareKind::Le, &self.key, &own)?;
        let AttentionMask::Window(window) = self.query.mask() else { return Ok(causal) };
        // A window as long as the cache hides nothing, and fits an i32.
        let before = p.scalar(BinaryKind::Sub, &own, (window as usize).min(keys) as f64)?;
        p.binary(BinaryKind::And, &causal, &p.compare(CompareKind::Gt, &self.key, &before)?)
    }
}
