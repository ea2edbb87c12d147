//! Causal convolution from shifted views of one padded sequence.

use super::begin;
use crate::call::{CausalConv1d, Fill};
use crate::launch::Launch;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::{DType, Result, Unsupported};

/// In f32: the rows before and x in one scratch sequence; each place of the filter is a product with a view of it.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn causal_conv1d(l: &Launch<'_>, op: &CausalConv1d, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let spec = op.spec();
    let (batch, tokens, channels, width) = (spec.batch(), spec.tokens(), spec.channels(), spec.width());
    let sequence = p.scratch(DType::F32, &[batch, width - 1 + tokens, channels])?;
    let mut before = sequence.narrow(1, 0, width - 1)?;
    match op.tensor("initial") {
        Some(initial) => p.store(&initial, &before)?,
        None => p.run(Fill::new(&mut before, 0.0)?)?,
    }
    p.store(&op.require("x")?, &sequence.narrow(1, width - 1, tokens)?)?;
    // One row a place of the filter.
    let weight = p.f32(&op.require("weight")?)?.transpose(0, 1)?;
    let place = |j: usize| p.binary(BinaryKind::Mul, &sequence.narrow(1, j, tokens)?, &weight.select(0, j)?);
    let sum = place(0)?;
    for j in 1..width {
        p.binary_in_place(BinaryKind::Add, &sum, &place(j)?)?;
    }
    if let Some(bias) = op.tensor("bias") {
        p.binary_in_place(BinaryKind::Add, &sum, &p.f32(&bias)?)?;
    }
    if spec.has_silu() {
        p.unary_in_place(UnaryKind::Silu, &sum)?;
    }
    p.store(&sum, &op.require("out")?)?;
    match op.tensor("last") {
        Some(last) => p.store(&sequence.narrow(1, tokens, width - 1)?, &last),
        None => Ok(()),
    }
}
