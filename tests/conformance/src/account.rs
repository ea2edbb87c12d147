//! One case on a device without data: no value can be compared, but shapes, support, costs, memory and errors can.

use crate::Promise;
use crate::case::honest;
use crate::operators::{Finding, broken};
use portolan_core::{Bind, Op, Stream, Tensor};
use portolan_ops::{Case, Contract, Cost, OpError, Result, Unsupported};

/// Runs a case on memory that nobody fills: the call is accepted or refused as `support()` says, what it costs is
/// booked once, in all and for its operator, nothing can be read back, and no memory stays behind.
pub(crate) fn account_case<C: Bind>(stream: &Stream, case: &Case<C>) -> Finding {
    let fail = |what: String| broken(Promise::Account, case, what);
    let failed = |error: OpError| fail(error.to_string());
    let live = || stream.device().memory().map(|memory| memory.live_bytes);
    let before = live().map_err(failed)?;
    let ran = {
        let operands = operands(stream, &case.contract).map_err(failed)?;
        let tensors: Vec<&Tensor> = operands.iter().map(|(tensor, _)| tensor).collect();
        let call = case.contract.bind(&tensors).map_err(|e| fail(format!("bind: {e}")))?;
        run(stream, call, &operands).map_err(|(promise, what)| broken(promise, case, what))?
    };
    let after = live().map_err(failed)?;
    if after != before {
        return Err(fail(format!("{before} bytes were alive before, {after} are afterwards")));
    }
    Ok(ran)
}

/// A tensor for each operand, and whether it is written.
fn operands<C: Contract>(stream: &Stream, contract: &C) -> Result<Vec<(Tensor, bool)>> {
    let mut specs = Vec::new();
    contract.operands(&mut |operand| specs.push((*operand.spec, operand.access.writes())));
    specs.into_iter().map(|(spec, writes)| Ok((stream.empty(&spec)?, writes))).collect()
}

fn run(stream: &Stream, call: impl Op, operands: &[(Tensor, bool)]) -> Result<bool, (Promise, String)> {
    let fail = |what: String| (Promise::Account, what);
    let promised = stream.device().support(&call.query(stream.options().determinism));
    let empty = operands.iter().all(|(tensor, writes)| !writes || tensor.numel() == 0);
    let (kind, cost) = (call.kind(), call.cost());
    let before = stream.report();
    let ran = stream.run(call).and_then(|()| stream.synchronize());
    let after = stream.report();
    let composed = after.compositions_total() > before.compositions_total();
    if !honest(&promised, ran, composed, empty)? {
        return Ok(false);
    }

    if after.launches != before.launches + 1 || after.fused != before.fused + cost {
        return Err(fail(format!("the report went from {before:?} to {after:?}, by one call of {cost:?}")));
    }
    // What the parts of a composition cost is theirs to say; a kernel costs what its operator does.
    if !composed && after.composed != before.composed + cost {
        let (before, after) = (before.composed, after.composed);
        return Err(fail(format!(
            "{promised:?} of {cost:?} took the composed cost from {before:?} to {after:?}"
        )));
    }
    let sums = after
        .operators
        .iter()
        .fold((Cost::default(), Cost::default()), |sums, row| (sums.0 + row.fused, sums.1 + row.composed));
    if sums != (after.fused, after.composed) || !after.operators.iter().any(|row| row.kind == kind) {
        return Err(fail(format!("the rows of {after:?} do not add up to its totals, or {kind} has none")));
    }

    for (tensor, _) in operands.iter().filter(|(tensor, writes)| *writes && tensor.numel() != 0) {
        match stream.download_bytes(tensor.buffer()).and_then(|pending| pending.wait()) {
            Err(OpError::Unsupported { reason: Unsupported::NoData, .. }) => {}
            Err(error) => return Err(fail(format!("reading back gave: {error}"))),
            Ok(_) => return Err(fail("a device without data gave some".into())),
        }
    }
    Ok(true)
}
