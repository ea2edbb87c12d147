//! Sparse attention from gathered entries: two products a token, with softmax between them.

use super::attention::decoded;
use super::begin;
use super::parts::Parts;
use super::ragged::Ragged;
use crate::call::{Fill, Gemm, SparseAttention};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, UnaryKind};
use portolan_ops::{DType, Result, Unsupported};

/// Entries and scores of the tokens that are worked on at a time; at least one token is.
const GATHERED_BYTES: usize = 64 << 20;

/// Computes the cache row of every index, gathers the entries, and attends to them.
///
/// # Errors
/// As the parts; `Unsupported` for caches of more rows than an i32 names and where the stream denies
/// compositions.
pub fn sparse_attention(l: &Launch<'_>, op: &SparseAttention, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (spec, q, out, lse) = (op.spec(), op.require("q")?, op.require("out")?, op.tensor("lse"));
    p.run(Fill::new(&mut out.clone(), 0.0)?)?;
    if let Some(lse) = &lse {
        p.run(Fill::new(&mut lse.clone(), f64::NEG_INFINITY)?)?;
    }
    let [tokens, heads, width] = [q.dims()[0], q.dims()[1], q.dims()[2]];
    let (batch, rank, top_k) = (spec.q_lens().count(), out.dims()[2], spec.top_k());
    let max_q = (spec.q_lens().max() as usize).min(tokens);
    if [batch, max_q, heads].contains(&0) {
        return Ok(());
    }
    let owner = owners(&p, op, [batch, max_q, tokens])?;
    let owned = p.compare_scalar(CompareKind::Ge, &owner, 0.0)?.reshape(&[tokens, 1])?;
    let sinks = op.tensor("sinks");
    if top_k == 0 {
        // Nothing but the sink is in a row's sum.
        return match (&lse, &sinks) {
            (Some(lse), Some(sinks)) => p.store(&p.select_or(&owned, sinks, f64::NEG_INFINITY)?, lse),
            _ => Ok(()),
        };
    }
    let cache = op.require("cache")?;
    let places = cache.dims()[0] * cache.dims()[1];
    let cache = flat(&p, &cache, &[places, width])?;
    let scale = op.tensor("cache_scale").map(|scale| flat(&p, &scale, &[places, 1])).transpose()?;
    let rows = rows(&p, op, &owner, &owned)?;
    let listed = p.compare_scalar(CompareKind::Ge, &rows, 0.0)?.reshape(&[tokens, 1, top_k])?;
    let hidden = p.full(DType::F32, &[], f64::NEG_INFINITY)?;
    let sinks = sinks.map(|sinks| sinks.reshape(&[heads, 1])).transpose()?;
    let each = top_k.saturating_mul(cache.dtype().bytes_for(width).saturating_add(4 * heads));
    let step = (GATHERED_BYTES / each.max(1)).clamp(1, tokens);
    for first in (0..tokens).step_by(step) {
        let count = step.min(tokens - first);
        let part = |t: &Tensor| t.narrow(0, first, count);
        // Padding gathers zeros, so that what weighs nothing is finite.
        let mut entries = p.gather(&cache, 0, &part(&rows)?)?;
        let mut queries = part(&q)?;
        if let Some(scale) = &scale {
            let scale = p.gather(scale, 0, &part(&rows)?)?.reshape(&[count, top_k])?;
            (entries, queries) = (decoded(&p, &entries, &scale)?, p.f32(&queries)?);
        }
        let mut scores = p.scratch(DType::F32, &[count, heads, top_k])?;
        p.run(Gemm::nt(&queries, &entries, &mut scores)?.alpha(spec.scale())?)?;
        let scores = p.select(&part(&listed)?, &scores, &hidden)?;
        let mut largest = p.reduce(ReduceKind::Max, &scores, 2)?;
        if let Some(sinks) = &sinks {
            largest = p.binary(BinaryKind::Max, &largest, sinks)?;
        }
        let blind = p.compare_scalar(CompareKind::Eq, &largest, f64::NEG_INFINITY)?;
        let largest = p.replace(&blind, 0.0, &largest)?;
        p.binary_in_place(BinaryKind::Sub, &scores, &largest)?;
        p.unary_in_place(UnaryKind::Exp, &scores)?;
        let sum = p.reduce(ReduceKind::Sum, &scores, 2)?;
        if let Some(sinks) = &sinks {
            let weight = p.binary(BinaryKind::Sub, sinks, &largest)?;
            p.unary_in_place(UnaryKind::Exp, &weight)?;
            p.binary_in_place(BinaryKind::Add, &sum, &weight)?;
        }
        if let Some(lse) = &lse {
            let logarithm = p.unary(UnaryKind::Log, &sum)?;
            p.binary_in_place(BinaryKind::Add, &logarithm, &largest)?;
            let logarithm = logarithm.reshape(&[count, heads])?;
            p.store(&p.select_or(&part(&owned)?, &logarithm, f64::NEG_INFINITY)?, &part(lse)?)?;
        }
        if rank == 0 {
            continue;
        }
        let mut values = p.scratch(DType::F32, &[count, heads, rank])?;
        let entries = p.f32(&entries.narrow(2, 0, rank)?)?;
        p.run(Gemm::nn(&scores, &entries, &mut values)?)?;
        p.binary_in_place(BinaryKind::Div, &values, &p.replace(&blind, 1.0, &sum)?)?;
        p.store(&values, &part(&out)?)?;
    }
    Ok(())
}

/// `x` with other extents, copied where its strides do not allow them.
fn flat(p: &Parts<'_, '_>, x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    if let Ok(view) = x.reshape(dims) {
        return Ok(view);
    }
    let copy = p.scratch(x.dtype(), x.dims())?;
    p.store(x, &copy)?;
    copy.reshape(dims)
}

/// The sequence of every token, −1 past the last one.
fn owners(p: &Parts<'_, '_>, op: &SparseAttention, [batch, max_q, tokens]: [usize; 3]) -> Result<Tensor> {
    let lens = op.require("q_lens")?;
    let ragged = Ragged::new(p, &lens, &lens, max_q)?;
    let owner = p.full(DType::I32, &[tokens], -1.0)?;
    let sequence = p.iota(batch)?.reshape(&[batch, 1])?.broadcast_to(&[batch, max_q])?;
    p.scatter_in_place(&owner, &ragged.token, &sequence)?;
    Ok(owner)
}

/// The cache row of every index, −1 for padding. An index outside of its sequence's room, or in an absent page, is
/// past the last row: a data fault when it is gathered.
fn rows(p: &Parts<'_, '_>, op: &SparseAttention, owner: &Tensor, owned: &Tensor) -> Result<Tensor> {
    let (cache, index) = (op.spec().cache().dims(), op.require("indices")?);
    let [outer, inner] = [cache[0], cache[1]];
    let listed = p.compare_scalar(CompareKind::Ge, &index, 0.0)?;
    let listed = p.binary(BinaryKind::And, &listed, owned)?;
    let outside =
        p.compare_scalar(CompareKind::Ge, &index, op.spec().capacity().min(i32::MAX as usize) as f64)?;
    let (row, outside) = match op.tensor("block_table") {
        None => {
            let start = p.scalar(BinaryKind::Mul, owner, inner as f64)?;
            (p.binary(BinaryKind::Add, &start.reshape(&[index.dims()[0], 1])?, &index)?, outside)
        }
        Some(table) => {
            let position = p.replace(&outside, 0.0, &index)?;
            let block = p.scalar(BinaryKind::Div, &position, inner as f64)?;
            let block = p.select_or(&listed, &block, -1.0)?;
            let page = p.gather_elements(&p.gather(&table, 0, owner)?, 1, &block)?;
            let absent = p.binary(
                BinaryKind::Or,
                &p.compare_scalar(CompareKind::Lt, &page, 0.0)?,
                &p.compare_scalar(CompareKind::Ge, &page, outer as f64)?,
            )?;
            let start = p.scalar(BinaryKind::Mul, &page, inner as f64)?;
            let within = p.scalar(BinaryKind::Rem, &position, inner as f64)?;
            let outside = p.binary(BinaryKind::Or, &outside, &absent)?;
            (p.binary(BinaryKind::Add, &start, &within)?, outside)
        }
    };
    p.select_or(&listed, &p.replace(&outside, (outer * inner) as f64, &row)?, -1.0)
}
