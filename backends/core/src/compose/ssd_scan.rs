//! The scan of heads with one rate each from outer products and the linear recurrence of the kernel core.

use super::begin;
use super::recurrence::{StateRuns, step_sizes};
use super::tokens::Tokens;
use crate::call::SsdScan;
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::{DType, OpError, Result, Unsupported};

/// Decays of every head and outer products of inputs for a run of tokens, their scan, and sums over the state.
///
/// Heads are laid out by group, so that what a group shares is broadcast and not copied.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn ssd_scan(l: &Launch<'_>, op: &SsdScan, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let [batch, heads, rows, state] = [spec.batch(), spec.heads(), spec.head_dim(), spec.state()];
    let groups = if heads == 0 { 1 } else { spec.groups() };
    let each = heads / groups;
    let optional = |name| op.tensor(name).map(|t| p.f32(&t)).transpose();
    let (a, d, bias) = (p.f32(&op.require("a")?)?, optional("d")?, optional("delta_bias")?);
    let [x, delta, b, c, out] = ["x", "delta", "b", "c", "out"].map(|name| op.require(name));
    let (x, delta, b, c, out) = (x?, delta?, b?, c?, out?);
    let runs = StateRuns::new(&p, op.tensor("initial"), &[batch, groups, each, rows, state])?;
    let lens = spec.lens().map(|lens| Ok::<_, OpError>((lens, op.require("lens")?))).transpose()?;
    let tokens = Tokens::new(&p, lens, spec.tokens())?;
    // Without heads there may be groups of none, which fit no head.
    let steps = if heads == 0 { 0 } else { tokens.steps() };
    for (first, count) in runs.cut(steps) {
        let part = |t: &Tensor| p.f32(&tokens.part(&p, t, first, count)?);
        let step = step_sizes(&p, &part(&delta)?, bias.as_ref(), spec.has_softplus())?;
        let decay = p.binary(BinaryKind::Mul, &step, &a)?;
        p.unary_in_place(UnaryKind::Exp, &decay)?;
        let decay =
            tokens.only(&p, decay.reshape(&[batch, count, groups, each, 1, 1])?, [first, count], 1.0)?;
        let x = part(&x)?;
        let scaled = p.binary(BinaryKind::Mul, &x, &step.reshape(&[batch, count, heads, 1])?)?;
        let scaled = scaled.reshape(&[batch, count, groups, each, rows, 1])?;
        let shared = |t: &Tensor| -> Result<Tensor> {
            let whole = p.scratch(DType::F32, &[batch, count, groups, state])?;
            p.store(&tokens.part(&p, t, first, count)?, &whole)?;
            whole.reshape(&[batch, count, groups, 1, 1, state])
        };
        let input = p.binary(BinaryKind::Mul, &scaled, &shared(&b)?)?;
        let input = tokens.only(&p, input, [first, count], 0.0)?;
        let y = runs.advance(&p, &decay, &input, &shared(&c)?)?.reshape(&[batch, count, heads, rows])?;
        if let Some(d) = &d {
            let skip = p.binary(BinaryKind::Mul, &x, &d.reshape(&[heads, 1])?)?;
            p.binary_in_place(BinaryKind::Add, &y, &skip)?;
        }
        tokens.store(&p, &y, &out, [first, count])?;
    }
    tokens.finish(&p, &out)?;
    runs.finish(&p, op.tensor("last"))
}
