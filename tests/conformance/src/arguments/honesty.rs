//! Whether `support()` tells the truth of arguments that no case has, and kernels keep to their operands with them.

use super::{Arguments, Choices, is_small};
use crate::case::{Ended, run_anyhow};
use crate::drawn::{Drawn, hash};
use crate::operators::Finding;
use crate::rig::Rig;
use portolan_core::Dispatch;
use portolan_ops::{Case, Contract, Fill, Result, philox_block};

/// Accepted arguments that are run.
const RUNS: usize = 32;
/// Random arguments, of which most are refused.
const TRIES: u64 = 2000;
/// Longest span of memory of an operand: strides may be anything.
const SPAN: usize = 1 << 20;

/// Runs accepted arguments and holds what happens against what the device says of them. Results are not compared:
/// tolerances are derived for the values and attributes of cases.
pub(super) fn honest<C: Arguments + Dispatch>(rig: &Rig, every: usize, seed: u64) -> Result<Finding> {
    let (mut stream, mut ran) = (rig.stream()?, false);
    let legal = (0..TRIES).filter_map(|draw| {
        let bytes: Vec<u8> = (0..8)
            .flat_map(|block| philox_block(seed ^ hash(C::KIND.name().bytes()), 8 * draw + block))
            .flat_map(u32::to_le_bytes)
            .collect();
        let op = C::arbitrary(&mut Choices::new(&bytes).of_zeros()).ok()?;
        // Nobody but the device makes its packed forms, so bytes at random are none.
        let mut fits = is_small(&op);
        op.operands(&mut |o| fits &= o.spec.span_bytes() <= SPAN && !o.name.ends_with("packed"));
        fits.then(|| harmless(draw, op))
    });
    for case in legal.take(RUNS.div_ceil(every)) {
        match run_anyhow(&stream, &Drawn::new(&case)) {
            Ok(Ended::Ran) => ran = true,
            Ok(Ended::Refused) => {}
            // An index of nothing, an integer divided by zero: the stream is lost, and the device kept its word.
            Ok(Ended::Faulted) => stream = rig.stream()?,
            Err(failure) => return Ok(Err(failure)),
        }
    }
    Ok(Ok(ran))
}

/// A case that names nothing which is not there: whole numbers and codes are 0.
fn harmless<C: Contract>(draw: u64, op: C) -> Case<C> {
    let mut zeros = Vec::new();
    op.operands(&mut |operand| {
        if !operand.spec.dtype().is_float() && !operand.spec.dtype().is_storage_float() {
            zeros.push(operand.name);
        }
    });
    let case = Case::new(format!("arguments/{draw}"), op);
    zeros.into_iter().fold(case, |case, name| case.fill(name, Fill::Values(vec![0.0])))
}
