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
    let cache = [op.require("k")?, op.require("v")?];
    attend(&p, op, op.spec().query(), &mut |_, first, count| {
        let [k, v] = [cache[0].narrow(0, first, count)?, cache[1].narrow(0, first, count)?];
        let part = |scale: Option<Tensor>| scale.map(|scale| scale.narrow(0, first, count)).transpose();
        let scales = [part(op.tensor("k_scale"))?, part(op.tensor("v_scale"))?];
        scaled(&p, [k, v], &scales)
    })
}

/// Keys and values as floats: themselves, or codes times their scales.
pub(super) fn scaled(
    p: &Parts<'_, '_>,
    [k, v]: [Tensor; 2],
    scales: &[Option<Tensor>; 2],
) -> Result<[Tensor; 2]> {
    let [Some(k_scale), Some(v_scale)] = scales else { return Ok([k, v]) };
    Ok([decoded(p, &k, k_scale)?, decoded(p, &v, v_scale)?])
}

/// Codes times their scales, of one for each row.
pub(super) fn decoded(p: &Parts<'_, '_>, codes: &Tensor, scale: &Tensor) -> Result<Tensor> {
    let floats = p.f32(codes)?;
    p.binary_in_place(BinaryKind::Mul, &floats, &scale.reshape(&[scale.dims(), &[1]].concat())?)?;
    Ok(floats)
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

/// Gives keys and values `[count, keys, num_kv_heads, ..]` of sequences `first..first + count`.
pub(super) type Entries<'f> = dyn FnMut(&Visible, usize, usize) -> Result<[Tensor; 2]> + 'f;

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
    let heads = query.num_heads();
    if [batch, max_q, heads].contains(&0) {
        return Ok(());
    }
    let ragged = Ragged::new(p, &op.require("q_lens")?, &op.require("kv_lens")?, max_q)?;
    let scores = ScoreTensors::of(op);
    if keys == 0 {
        // Nothing but the sink is in a row's sum.
        return match (&lse, &scores.sinks) {
            (Some(lse), Some(sinks)) => {
                p.scatter_in_place(lse, &ragged.token, &sinks.broadcast_to(&[batch, max_q, heads])?)
            }
            _ => Ok(()),
        };
    }
    let visible = Visible::new(p, &ragged, query.mask(), keys)?;
    let key = p.iota(keys)?;
    let group = Group { p, query, scores: &scores, ragged: &ragged, visible: &visible, key, max_q };
    let bytes = heads.saturating_mul(max_q).saturating_mul(keys).saturating_mul(4);
    let step = (SCORES_BYTES / bytes).clamp(1, batch);
    for first in (0..batch).step_by(step) {
        let count = step.min(batch - first);
        let [k, v] = entries(&visible, first, count)?;
        group.run(&q, &k.narrow(1, 0, keys)?, &v.narrow(1, 0, keys)?, [first, count], &out, lse.as_ref())?;
    }
    Ok(())
}

/// The operands of what may be done to scores.
struct ScoreTensors {
    attn_mask: Option<Tensor>,
    slopes: Option<Tensor>,
    sinks: Option<Tensor>,
}

impl ScoreTensors {
    fn of<C: Dispatch>(op: &Call<C>) -> Self {
        Self { attn_mask: op.tensor("attn_mask"), slopes: op.tensor("slopes"), sinks: op.tensor("sinks") }
    }
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
    scores: &'g ScoreTensors,
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
        // A cache of codes has become one of f32.
        let queries = if k.dtype() == DType::F32 { p.f32(&queries)? } else { queries };
        let queries = queries.reshape(&[count, kv_heads, rows, d])?;
        p.run(Gemm::nt(&queries, &k.transpose(1, 2)?, &mut scores)?.alpha(query.scale())?)?;
        let scores = scores.reshape(&[count, heads, max_q, keys])?;
        let mut mask = self.mask(first, count)?;
        if let Some(allowed) = self.adjust(&scores, &token, first, count)? {
            mask = p.binary(BinaryKind::And, &allowed, &mask)?;
        }
        let hidden = p.full(DType::F32, &[], f64::NEG_INFINITY)?;
        p.run(Select::new(&mask, &scores, &hidden, &mut scores.clone())?)?;

        let mut largest = p.reduce(ReduceKind::Max, &scores, 3)?;
        let sinks = self.scores.sinks.as_ref().map(|sinks| sinks.reshape(&[heads, 1, 1])).transpose()?;
        if let Some(sinks) = &sinks {
            largest = p.binary(BinaryKind::Max, &largest, sinks)?;
        }
        let blind = p.compare_scalar(CompareKind::Eq, &largest, f64::NEG_INFINITY)?;
        let largest = p.replace(&blind, 0.0, &largest)?;
        p.binary_in_place(BinaryKind::Sub, &scores, &largest)?;
        p.unary_in_place(UnaryKind::Exp, &scores)?;
        let sum = p.reduce(ReduceKind::Sum, &scores, 3)?;
        if let Some(sinks) = &sinks {
            let weight = p.binary(BinaryKind::Sub, sinks, &largest)?;
            p.unary_in_place(UnaryKind::Exp, &weight)?;
            p.binary_in_place(BinaryKind::Add, &sum, &weight)?;
        }
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

    /// Soft cap, slopes and explicit mask, in this order, in place; gives what the mask leaves visible.
    fn adjust(&self, scores: &Tensor, token: &Tensor, first: usize, count: usize) -> Result<Option<Tensor>> {
        let (p, keys, heads) = (self.p, self.visible.max, self.query.num_heads());
        if let Some(cap) = self.query.scores().soft_cap().map(f64::from) {
            p.scalar_in_place(BinaryKind::Div, scores, cap)?;
            p.unary_in_place(UnaryKind::Tanh, scores)?;
            p.scalar_in_place(BinaryKind::Mul, scores, cap)?;
        }
        if let Some(slopes) = &self.scores.slopes {
            let distance = p.f32(&p.binary(BinaryKind::Sub, &self.own(first, count)?, &self.key)?)?;
            p.unary_in_place(UnaryKind::Abs, &distance)?;
            let bias = p.binary(BinaryKind::Mul, &slopes.reshape(&[heads, 1, 1])?, &distance)?;
            p.binary_in_place(BinaryKind::Sub, scores, &bias)?;
        }
        let Some(mask) = &self.scores.attn_mask else { return Ok(None) };
        let entries = p.gather(&mask.narrow(2, 0, keys)?, 0, token)?.transpose(1, 2)?;
        if entries.dtype() == DType::Bool {
            return Ok(Some(entries));
        }
        let entries = p.f32(&entries)?;
        p.binary_in_place(BinaryKind::Add, scores, &entries)?;
        p.compare_scalar(CompareKind::Ne, &entries, f64::NEG_INFINITY).map(Some)
    }

    /// Position of each query of the group, `[count, 1, max_q, 1]`.
    fn own(&self, first: usize, count: usize) -> Result<Tensor> {
        self.ragged.position.narrow(0, first, count)?.reshape(&[count, 1, self.max_q, 1])
    }

    /// Which keys each query of the group sees: `[count, 1, max_q or 1, keys]`.
    fn mask(&self, first: usize, count: usize) -> Result<Tensor> {
        let (p, keys) = (self.p, self.visible.max);
        if self.query.mask() == AttentionMask::Full {
            let end = self.visible.end.narrow(0, first, count)?;
            return p.compare(CompareKind::Lt, &self.key, &end)?.reshape(&[count, 1, 1, keys]);
        }
        // A token's own position is below its sequence's number of keys.
        let own = self.own(first, count)?;
        let causal = p.compare(CompareKind::Le, &self.key, &own)?;
        let AttentionMask::Window(window) = self.query.mask() else { return Ok(causal) };
        // A window as long as the cache hides nothing, and fits an i32.
        let before = p.scalar(BinaryKind::Sub, &own, (window as usize).min(keys) as f64)?;
        p.binary(BinaryKind::And, &causal, &p.compare(CompareKind::Gt, &self.key, &before)?)
    }
}
