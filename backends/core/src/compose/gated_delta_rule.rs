//! The gated delta rule from products and sums, token by token: each step needs what the one before has written.

use super::begin;
use super::parts::Parts;
use super::recurrence::StateRuns;
use super::tokens::Tokens;
use crate::call::GatedDeltaRule;
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, ReduceKind, UnaryKind};
use portolan_ops::{DType, OpError, Result, Unsupported};

/// For every token: decay, what is held under the key, its difference to the value, the outer product, the query.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn gated_delta_rule(l: &Launch<'_>, op: &GatedDeltaRule, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let [batch, heads, rows, columns] = [spec.batch(), spec.heads(), spec.key_dim(), spec.value_dim()];
    let key_heads = if heads == 0 { 1 } else { spec.key_heads() };
    let each = heads / key_heads;
    let (out, last) = (op.require("out")?, op.tensor("last"));
    let runs = StateRuns::new(&p, op.tensor("initial"), &[batch, heads, rows, columns])?;
    let lens = spec.lens().map(|lens| Ok::<_, OpError>((lens, op.require("lens")?))).transpose()?;
    let tokens = Tokens::new(&p, lens, spec.tokens())?;
    if heads == 0 || tokens.steps() == 0 {
        tokens.finish(&p, &out)?;
        return runs.finish(&p, last);
    }
    let state = runs.state().reshape(&[batch, key_heads, each, rows, columns])?;
    let q = keys(&p, &op.require("q")?, spec.key_norm())?;
    p.scalar_in_place(BinaryKind::Mul, &q, f64::from(spec.scale()))?;
    let k = keys(&p, &op.require("k")?, spec.key_norm())?;
    let decay = p.unary(UnaryKind::Exp, &p.f32(&op.require("g")?)?)?;
    let [beta, v] = [op.require("beta")?, op.require("v")?].map(|t| p.f32_copy(&t, t.dims()));
    let (beta, v) = (beta?, v?);
    for t in 0..tokens.steps() {
        let part = |x: &Tensor| tokens.part(&p, x, t, 1);
        let key = |x: &Tensor| part(x)?.reshape(&[batch, key_heads, 1, rows, 1]);
        let number = |x: &Tensor| part(x)?.reshape(&[batch, key_heads, each, 1, 1]);
        let (q, k) = (key(&q)?, key(&k)?);
        p.binary_in_place(BinaryKind::Mul, &state, &tokens.only(&p, number(&decay)?, [t, 1], 1.0)?)?;
        let held = p.reduce(ReduceKind::Sum, &p.binary(BinaryKind::Mul, &state, &k)?, 3)?;
        let v = part(&v)?.reshape(&[batch, key_heads, each, 1, columns])?;
        let change = p.binary(BinaryKind::Sub, &v, &held)?;
        p.binary_in_place(BinaryKind::Mul, &change, &number(&beta)?)?;
        let written = tokens.only(&p, p.binary(BinaryKind::Mul, &k, &change)?, [t, 1], 0.0)?;
        p.binary_in_place(BinaryKind::Add, &state, &written)?;
        let read = p.reduce(ReduceKind::Sum, &p.binary(BinaryKind::Mul, &state, &q)?, 3)?;
        tokens.store(&p, &read.reshape(&[batch, 1, heads, columns])?, &out, [t, 1])?;
    }
    tokens.finish(&p, &out)?;
    runs.finish(&p, last)
}

/// Queries or keys as contiguous f32, normalised where the call says so.
fn keys(p: &Parts<'_, '_>, x: &Tensor, key_norm: Option<f32>) -> Result<Tensor> {
    let out = p.scratch(DType::F32, x.dims())?;
    p.store(x, &out)?;
    if let Some(eps) = key_norm {
        let squares = p.binary(BinaryKind::Mul, &out, &out)?;
        let root = p.reduce(ReduceKind::Sum, &squares, 3)?;
        p.scalar_in_place(BinaryKind::Add, &root, f64::from(eps))?;
        p.unary_in_place(UnaryKind::Sqrt, &root)?;
        p.binary_in_place(BinaryKind::Div, &out, &root)?;
    }
    Ok(out)
}
