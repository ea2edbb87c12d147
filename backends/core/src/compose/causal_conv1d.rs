//! Causal convolution from shifted views of one padded sequence.

use super::begin;
use super::tokens::Tokens;
use crate::call::{CausalConv1d, Fill};
use crate::launch::Launch;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::{DType, OpError, Result, Unsupported};

/// Rows of sequences of unequal lengths that are worked on at a time; at least one of each is.
const ROWS_BYTES: usize = 64 << 20;

/// In f32: the rows before and x in one scratch sequence; each place of the filter is a product with a view of it.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn causal_conv1d(l: &Launch<'_>, op: &CausalConv1d, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let lens = spec.lens().map(|lens| Ok::<_, OpError>((lens, op.require("lens")?))).transpose()?;
    let tokens = Tokens::new(&p, lens, spec.tokens())?;
    let (batch, channels, before, steps) = (spec.batch(), spec.channels(), spec.width() - 1, tokens.steps());
    // A rectangle of sequences of unequal lengths may be much larger than what lies in it.
    let most = if spec.lens().is_some() { ROWS_BYTES / (4 * batch * channels).max(1) } else { steps };
    let count = most.clamp(1, steps.max(1));
    let (x, out) = (op.require("x")?, op.require("out")?);
    let sequence = p.scratch(DType::F32, &[batch, before + count, channels])?;
    let mut window = sequence.narrow(1, 0, before)?;
    match op.tensor("initial") {
        Some(initial) => p.store(&initial, &window)?,
        None => p.run(Fill::new(&mut window, 0.0)?)?,
    }
    // One row a place of the filter.
    let weight = p.f32(&op.require("weight")?)?.transpose(0, 1)?;
    let bias = op.tensor("bias").map(|bias| p.f32(&bias)).transpose()?;
    for first in (0..steps).step_by(count) {
        let run = [first, count.min(steps - first)];
        if first > 0 {
            p.store(&window, &sequence.narrow(1, 0, before)?)?;
        }
        p.store(&tokens.part(&p, &x, first, run[1])?, &sequence.narrow(1, before, run[1])?)?;
        let place =
            |j: usize| p.binary(BinaryKind::Mul, &sequence.narrow(1, j, run[1])?, &weight.select(0, j)?);
        let sum = place(0)?;
        for j in 1..spec.width() {
            p.binary_in_place(BinaryKind::Add, &sum, &place(j)?)?;
        }
        if let Some(bias) = &bias {
            p.binary_in_place(BinaryKind::Add, &sum, bias)?;
        }
        if spec.has_silu() {
            p.unary_in_place(UnaryKind::Silu, &sum)?;
        }
        tokens.store(&p, &sum, &out, run)?;
        window = tokens.behind(&p, &sequence, before, run)?;
    }
    tokens.finish(&p, &out)?;
    match op.tensor("last") {
        Some(last) => p.store(&window, &last),
        None => Ok(()),
    }
}
