//! Cache writes from one scatter of rows, at places computed from the lengths on the device.

use super::begin;
use super::parts::Parts;
use super::ragged::Ragged;
use crate::call::{KvCacheWrite, Scatter};
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::codec::SmallFloat;
use portolan_ops::kernel::{BinaryKind, CompareKind, ReduceKind, ScatterMode, UnaryKind};
use portolan_ops::{DType, QuantScheme, Result, Unsupported};

/// Computes the cache row of every token and scatters the tokens there; a cache whose rows are not evenly
/// strided is copied to scratch and back.
///
/// # Errors
/// As the parts; `Unsupported` for caches of more rows than an i32 names and where the stream denies
/// compositions.
pub fn kv_cache_write(l: &Launch<'_>, op: &KvCacheWrite, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let (spec, x, cache) = (op.spec(), op.require("x")?, op.require("cache")?);
    let (tokens, batch) = (x.dims()[0], spec.q_lens().count());
    let max_q = (spec.q_lens().max() as usize).min(tokens);
    if tokens == 0 || batch == 0 || max_q == 0 || x.numel() == 0 {
        return Ok(());
    }
    let ragged = Ragged::new(&p, &op.require("q_lens")?, &op.require("kv_lens")?, max_q)?;
    let place = places(&p, op, &ragged)?;
    // From the rectangle of places to one a token: so x is read once, however ragged the batch.
    let mut rows = p.full(DType::I32, &[tokens], -1.0)?;
    p.run(Scatter::new(ScatterMode::Set, &rows.clone(), 0, &ragged.token, &place, &mut rows)?)?;
    let (Some(scale), Some(scheme)) = (op.tensor("scale"), spec.scheme()) else {
        return write(&p, &cache, &rows, &converted(&p, &x, cache.dtype())?);
    };
    let [codes, scales] = quantized(&p, &x, &scheme)?;
    write(&p, &cache, &rows, &codes)?;
    write(&p, &scale, &rows, &scales)
}

/// Scatters `x` to rows of a cache tensor, which are its first two dimensions.
fn write(p: &Parts<'_, '_>, cache: &Tensor, rows: &Tensor, x: &Tensor) -> Result<()> {
    let flat = [&[cache.dims()[0] * cache.dims()[1]], &cache.dims()[2..]].concat();
    if let Ok(view) = cache.reshape(&flat) {
        return p.scatter_in_place(&view, rows, x);
    }
    let copy = p.scratch(cache.dtype(), cache.dims())?;
    p.store(cache, &copy)?;
    p.scatter_in_place(&copy.reshape(&flat)?, rows, x)?;
    p.store(&copy, cache)
}

/// `x` in the type of the cache; one of 8 bits takes its largest number for what is beyond that.
fn converted(p: &Parts<'_, '_>, x: &Tensor, dtype: DType) -> Result<Tensor> {
    let Some(format) = SmallFloat::of(dtype) else { return p.cast(x, dtype) };
    let (x, top) = (p.f32_copy(x, x.dims())?, f64::from(format.largest()));
    p.scalar_in_place(BinaryKind::Min, &x, top)?;
    p.scalar_in_place(BinaryKind::Max, &x, -top)?;
    p.cast(&x, dtype)
}

/// Codes and scales of every row of `x`: the largest magnitude becomes the largest code.
fn quantized(p: &Parts<'_, '_>, x: &Tensor, scheme: &QuantScheme) -> Result<[Tensor; 2]> {
    let top = f64::from(scheme.symmetric_top());
    let x = p.f32_copy(x, x.dims())?;
    let largest = p.reduce(ReduceKind::Max, &p.unary(UnaryKind::Abs, &x)?, 2)?;
    // A row that is not finite has no scale; one of zeros has 0; the codes of both are 0.
    let infinite = p.compare_scalar(CompareKind::Eq, &largest, f64::INFINITY)?;
    let scale = p.scalar(BinaryKind::Div, &p.replace(&infinite, f64::NAN, &largest)?, top)?;
    p.binary_in_place(BinaryKind::Div, &x, &scale)?;
    if SmallFloat::of(scheme.code).is_none() {
        p.unary_in_place(UnaryKind::Round, &x)?;
    }
    p.scalar_in_place(BinaryKind::Min, &x, top)?;
    p.scalar_in_place(BinaryKind::Max, &x, -top)?;
    let codes = p.select_or(&p.compare_scalar(CompareKind::Gt, &scale, 0.0)?, &x, 0.0)?;
    let scales = scale.reshape(&scale.dims()[..2])?;
    Ok([p.cast(&codes, scheme.code)?, scales])
}

/// The cache row of the token at `[b, t]`, −1 where there is none. A place outside of its sequence's room, or
/// in an absent page, is past the last row: a data fault when it is scattered.
fn places(p: &Parts<'_, '_>, op: &KvCacheWrite, ragged: &Ragged) -> Result<Tensor> {
    let cache = op.spec().cache().dims();
    let (position, batch) = (&ragged.position, ragged.position.dims()[0]);
    let or = |a: &Tensor, b: &Tensor| p.binary(BinaryKind::Or, a, b);
    let beyond = |x: &Tensor, bound: usize| {
        let below = p.compare_scalar(CompareKind::Lt, x, 0.0)?;
        or(&below, &p.compare_scalar(CompareKind::Ge, x, bound as f64)?)
    };
    let (row, outside) = match op.tensor("block_table") {
        None => {
            let start = p.scalar(BinaryKind::Mul, &p.iota(batch)?, cache[1] as f64)?;
            (p.binary(BinaryKind::Add, &start.reshape(&[batch, 1])?, position)?, beyond(position, cache[1])?)
        }
        Some(table) => {
            let capacity = table.dims()[1].saturating_mul(cache[1]).min(i32::MAX as usize);
            let outside = beyond(position, capacity)?;
            let position = p.replace(&outside, 0.0, position)?;
            let block = p.scalar(BinaryKind::Div, &position, cache[1] as f64)?;
            let block = p.select_or(&ragged.exists, &block, -1.0)?;
            let page = p.gather_elements(&table, 1, &block)?;
            let start = p.scalar(BinaryKind::Mul, &page, cache[1] as f64)?;
            let within = p.scalar(BinaryKind::Rem, &position, cache[1] as f64)?;
            (p.binary(BinaryKind::Add, &start, &within)?, or(&outside, &beyond(&page, cache[0])?)?)
        }
    };
    let rows = cache[0] * cache[1];
    p.select_or(&ragged.exists, &p.replace(&outside, rows as f64, &row)?, -1.0)
}
