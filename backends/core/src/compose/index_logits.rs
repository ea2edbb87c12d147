//! Index logits from one product a group of sequences, rectified, weighted and summed over heads.

use super::attention::{Visible, decoded};
use super::begin;
use super::paged_attention::{entries_of, pages_in_use};
use super::ragged::Ragged;
use crate::call::{Fill, Gather, Gemm, IndexLogits};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, UnaryKind};
use portolan_ops::{DType, Result, Unsupported};

/// Products of the sequences that are worked on at a time; at least one sequence is.
const PRODUCTS_BYTES: usize = 64 << 20;

/// Queries padded to a rectangle, products, weighted sum, written back to their tokens.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn index_logits(l: &Launch<'_>, op: &IndexLogits, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (spec, q, k) = (op.spec(), op.require("q")?, op.require("k")?);
    let (weights, logits) = (op.require("weights")?, op.require("logits")?);
    p.run(Fill::new(&mut logits.clone(), f64::NEG_INFINITY)?)?;
    let [tokens, heads, dim] = [q.dims()[0], q.dims()[1], q.dims()[2]];
    let (batch, keys, ratio) = (spec.q_lens().count(), spec.max_keys(), f64::from(spec.ratio()));
    let max_q = (spec.q_lens().max() as usize).min(tokens);
    if [batch, keys, max_q].contains(&0) {
        return Ok(());
    }
    let ragged = Ragged::new(&p, &op.require("q_lens")?, &op.require("kv_lens")?, max_q)?;
    // Keys in use, and how many each token sees: those whose last token it has come to.
    let any = p.compare_scalar(CompareKind::Gt, &ragged.q_lens, 0.0)?;
    let end = p.select_or(&any, &p.scalar(BinaryKind::Div, &ragged.kv_lens, ratio)?, 0.0)?;
    let visible = Visible { end, start: None, max: keys };
    let seen = p.scalar(BinaryKind::Add, &ragged.position, 1.0)?;
    p.scalar_in_place(BinaryKind::Div, &seen, ratio)?;
    let key = p.iota(keys)?;
    let [outer, inner] = [k.dims()[0], k.dims()[1]];
    let k = k.reshape(&[outer, inner, 1, dim])?;
    let scale = op.tensor("k_scale").map(|scale| scale.reshape(&[outer, inner, 1, 1])).transpose()?;
    let pages = match op.tensor("block_table") {
        Some(table) => Some(pages_in_use(&p, &visible, &table, inner, outer)?),
        None => None,
    };
    let bytes = heads.max(1).saturating_mul(max_q).saturating_mul(keys).saturating_mul(4);
    let step = (PRODUCTS_BYTES / bytes).clamp(1, batch);
    for first in (0..batch).step_by(step) {
        let count = step.min(batch - first);
        let token = ragged.token.narrow(0, first, count)?;
        let part = |cache: &Tensor| match &pages {
            None => cache.narrow(0, first, count)?.narrow(1, 0, keys),
            Some(pages) => entries_of(&p, cache, &pages.narrow(0, first, count)?)?.narrow(1, 0, keys),
        };
        let mut entries = part(&k)?.reshape(&[count, keys, dim])?;
        if let Some(scale) = &scale {
            entries = decoded(&p, &entries, &part(scale)?.reshape(&[count, keys])?)?;
        }
        let queries = p.scratch(q.dtype(), &[count, max_q, heads, dim])?;
        p.run(Gather::slices(&q, 0, &token, &mut queries.clone())?)?;
        let queries = if scale.is_some() { p.f32(&queries)? } else { queries };
        let mut products = p.scratch(DType::F32, &[count, max_q * heads, keys])?;
        p.run(Gemm::nt(&queries.reshape(&[count, max_q * heads, dim])?, &entries, &mut products)?)?;
        p.unary_in_place(UnaryKind::Relu, &products)?;
        let products = products.reshape(&[count, max_q, heads, keys])?;
        let weights = p.gather(&weights, 0, &token)?.reshape(&[count, max_q, heads, 1])?;
        p.binary_in_place(BinaryKind::Mul, &products, &weights)?;
        let sum = p.reduce(ReduceKind::Sum, &products, 2)?.reshape(&[count, max_q, keys])?;
        let seen = seen.narrow(0, first, count)?.reshape(&[count, max_q, 1])?;
        let sum = p.select_or(&p.compare(CompareKind::Lt, &key, &seen)?, &sum, f64::NEG_INFINITY)?;
        p.scatter_in_place(&logits.narrow(1, 0, keys)?, &token, &sum)?;
    }
    Ok(())
}
