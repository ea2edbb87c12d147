//! The selective scan from exponentials, products and the linear recurrence of the kernel core.

use super::begin;
use super::recurrence::{StateRuns, step_sizes};
use super::tokens::Tokens;
use crate::call::SelectiveScan;
use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::{OpError, Result, Unsupported};

/// Decays and inputs of every number of the state for a run of tokens, their scan, and sums over the state.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn selective_scan(l: &Launch<'_>, op: &SelectiveScan, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let [batch, channels, state] = [spec.batch(), spec.channels(), spec.state()];
    let optional = |name| op.tensor(name).map(|t| p.f32(&t)).transpose();
    let (a, d, bias) = (p.f32(&op.require("a")?)?, optional("d")?, optional("delta_bias")?);
    let (x, delta, b, c) = (op.require("x")?, op.require("delta")?, op.require("b")?, op.require("c")?);
    let (z, out) = (op.tensor("z"), op.require("out")?);
    let runs = StateRuns::new(&p, op.tensor("initial"), &[batch, channels, state])?;
    let lens = spec.lens().map(|lens| Ok::<_, OpError>((lens, op.require("lens")?))).transpose()?;
    let tokens = Tokens::new(&p, lens, spec.tokens())?;
    for (first, count) in runs.cut(tokens.steps()) {
        let part = |t: &Tensor| p.f32(&tokens.part(&p, t, first, count)?);
        let x = part(&x)?;
        let delta = step_sizes(&p, &part(&delta)?, bias.as_ref(), spec.has_softplus())?;
        let each = delta.reshape(&[batch, count, channels, 1])?;
        let decay = p.binary(BinaryKind::Mul, &each, &a)?;
        p.unary_in_place(UnaryKind::Exp, &decay)?;
        let decay = tokens.only(&p, decay, [first, count], 1.0)?;
        let scaled = p.binary(BinaryKind::Mul, &delta, &x)?.reshape(&[batch, count, channels, 1])?;
        let over_channels = |t: &Tensor| part(t)?.reshape(&[batch, count, 1, state]);
        let input = p.binary(BinaryKind::Mul, &scaled, &over_channels(&b)?)?;
        let input = tokens.only(&p, input, [first, count], 0.0)?;
        let y = runs.advance(&p, &decay, &input, &over_channels(&c)?)?.reshape(&[batch, count, channels])?;
        if let Some(d) = &d {
            p.binary_in_place(BinaryKind::Add, &y, &p.binary(BinaryKind::Mul, &x, d)?)?;
        }
        if let Some(z) = &z {
            p.binary_in_place(BinaryKind::Mul, &y, &p.unary(UnaryKind::Silu, &part(z)?)?)?;
        }
        tokens.store(&p, &y, &out, [first, count])?;
    }
    tokens.finish(&p, &out)?;
    runs.finish(&p, op.tensor("last"))
}
