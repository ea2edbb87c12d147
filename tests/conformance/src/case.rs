//! One case on one device: run it on drawn operands, compare with the oracle, look for writes outside of the output.

use crate::drawn::{Bound, Drawn, GUARD, Operand};
use crate::operators::broken;
use crate::{Failure, Promise};
use portolan_core::{Bind, Op, Stream, Support, Tensor};
use portolan_ops::{Case, HostTensor, OpError, TensorSpec};

/// What a case is run on, and how far from the contract's tolerance it may be.
pub struct Subject<'a> {
    /// Where it runs.
    pub stream: &'a Stream,
    /// Multiplies every tolerance; 1 for native kernels, more for compositions that round in between.
    pub slack: f64,
}

/// Runs one case, and once more in place for every pair of operands that may share memory; `Ok(false)` when
/// the device says it cannot.
///
/// # Errors
/// The [`Failure`], when the device is wrong, dishonest about its support, or writes where it must not.
pub fn check_case<C: Bind>(subject: &Subject<'_>, case: &Case<C>) -> Result<bool, Failure> {
    check_drawn(subject, &Drawn::new(case))
}

/// As [`check_case`], of a case that other devices run as well.
pub(crate) fn check_drawn<C: Bind>(subject: &Subject<'_>, drawn: &Drawn<'_, C>) -> Result<bool, Failure> {
    if !check_way(subject, drawn, None)? {
        return Ok(false);
    }
    let mut specs: Vec<(&'static str, TensorSpec)> = Vec::new();
    drawn.case.contract.operands(&mut |o| specs.push((o.name, *o.spec)));
    let place = |wanted: &str| specs.iter().position(|(name, _)| *name == wanted);
    for (out, input) in drawn.case.contract.in_place() {
        let (Some(out), Some(input)) = (place(out), place(input)) else { continue };
        if specs[out].1 == specs[input].1 && !check_way(subject, drawn, Some(Shared { out, input }))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// An output in the memory of an input; both by their place in the contract.
#[derive(Clone, Copy)]
struct Shared {
    out: usize,
    input: usize,
}

/// Whether a call ran that the device had promised to run; an error when what happened is not what it said.
pub(crate) fn honest(
    promised: &Support,
    ran: Result<(), OpError>,
    composed: bool,
    empty: bool,
) -> Result<bool, (Promise, String)> {
    let dishonest = |what: String| Err((Promise::Support, what));
    match (promised, ran) {
        (Support::No(_), Err(OpError::Unsupported { .. })) => Ok(false),
        // Nothing to compute, so nothing was launched that could have been refused.
        (Support::No(_), Ok(())) if empty => Ok(false),
        (Support::No(why), Ok(())) => dishonest(format!("support() said no ({why}), yet it ran")),
        (Support::No(why), Err(error)) => {
            Err((Promise::Errors, format!("refused ({why}), but not as Unsupported: {error}")))
        }
        (_, Err(error @ OpError::Unsupported { .. })) => {
            dishonest(format!("support() said {promised:?}, running gave: {error}"))
        }
        (_, Err(error)) => Err((Promise::Oracle, format!("running gave: {error}"))),
        (Support::Native, Ok(())) if composed => {
            dishonest("support() said native, yet it was composed".into())
        }
        (Support::Composed(_), Ok(())) if !composed && !empty => {
            dishonest("support() said composed, yet it was not".into())
        }
        _ => Ok(true),
    }
}

/// What happened to a call, beside what the device had said of it.
struct Run {
    promised: Support,
    ran: Result<(), OpError>,
    composed: bool,
}

fn run_bound<C: Bind>(stream: &Stream, drawn: &Drawn<'_, C>, operands: &[Bound]) -> Result<Run, OpError> {
    let tensors: Vec<&Tensor> = operands.iter().map(|o| &o.tensor).collect();
    let call = drawn.case.contract.bind(&tensors)?;
    let promised = stream.device().support(&call.query(stream.options().determinism));
    let before = stream.report().compositions_total();
    let ran = stream.run(call).and_then(|()| stream.synchronize());
    let composed = stream.report().compositions_total() > before;
    Ok(Run { promised, ran, composed })
}

/// How a run ended whose results nobody compares.
pub(crate) enum Ended {
    Ran,
    Refused,
    /// The data was at fault, so the stream is poisoned.
    Faulted,
}

/// Runs a case for what the device says of it and for the memory around its operands.
pub(crate) fn run_anyhow<C: Bind>(stream: &Stream, drawn: &Drawn<'_, C>) -> Result<Ended, Failure> {
    let failed = |error: OpError| broken(Promise::Support, drawn.case, error);
    let bound = drawn.bind(stream).map_err(failed)?;
    let Run { promised, ran, composed } = run_bound(stream, drawn, &bound).map_err(failed)?;
    if let Err(OpError::Poisoned { source, .. }) = &ran
        && matches!(**source, OpError::Data { .. })
    {
        return Ok(Ended::Faulted);
    }
    let held = honest(&promised, ran, composed, drawn.writes_nothing());
    if !held.map_err(|(promise, what)| broken(promise, drawn.case, what))? {
        return Ok(Ended::Refused);
    }
    for (operand, bound) in drawn.operands().map_err(failed)?.iter().zip(&bound) {
        intact(stream, operand, bound, !operand.access.writes()).map_err(|e| match e {
            Overstep::Guard(what) => broken(Promise::Guards, drawn.case, what),
            Overstep::Error(error) => failed(error),
        })?;
    }
    Ok(Ended::Ran)
}

fn check_way<C: Bind>(
    subject: &Subject<'_>,
    drawn: &Drawn<'_, C>,
    shared: Option<Shared>,
) -> Result<bool, Failure> {
    let (case, stream) = (drawn.case, subject.stream);
    let way = if shared.is_some() { " (in place)" } else { "" };
    let broken = |promise: Promise, what: String| {
        let failure = broken(promise, case, what);
        Failure { case: format!("{}{way}", failure.case), ..failure }
    };
    let fail = |what: String| broken(Promise::Oracle, what);
    let failed = |error: OpError| fail(error.to_string());
    let mut bound = drawn.bind(stream).map_err(failed)?;
    if let Some(Shared { out, input }) = shared {
        bound[out] = bound[input].clone();
    }
    let Run { promised, ran, composed } = run_bound(stream, drawn, &bound).map_err(failed)?;
    let held = honest(&promised, ran, composed, drawn.writes_nothing());
    if !held.map_err(|(promise, what)| broken(promise, what))? {
        return Ok(false);
    }

    let want = drawn.expected().map_err(failed)?;
    let operands = drawn.operands().map_err(failed)?;
    let written = operands.iter().filter(|o| o.access.writes()).count();
    if want.len() != written {
        return Err(fail(format!("the oracle gave {} results for {written} written operands", want.len())));
    }
    let tolerance = case.contract.tolerance();
    let mut outputs = want.iter().zip(&tolerance);
    for (place, (operand, bound)) in operands.iter().zip(&bound).enumerate() {
        let only_read = !operand.access.writes() && shared.is_none_or(|s| s.input != place);
        let got = intact(stream, operand, bound, only_read).map_err(|e| match e {
            Overstep::Guard(what) => broken(Promise::Guards, what),
            Overstep::Error(error) => failed(error),
        })?;
        if !operand.access.writes() {
            continue;
        }
        if let Some((want, tolerance)) = outputs.next() {
            let mut tolerance = *tolerance;
            tolerance.abs *= subject.slack;
            tolerance.rel *= subject.slack;
            tolerance.check(&got.to_f64(), want).map_err(|m| {
                fail(format!("{} {}: {m}", operand.name, coordinates(operand.host.spec(), m.index)))
            })?;
        }
    }
    Ok(true)
}

/// What became of memory that a call had no business with.
enum Overstep {
    /// A byte changed that belongs to no element of an output.
    Guard(String),
    /// The device did not give its bytes.
    Error(OpError),
}

/// What an operand holds after a run, when nothing around it, and of an operand that is only read nothing in it,
/// has changed.
fn intact(
    stream: &Stream,
    operand: &Operand,
    bound: &Bound,
    only_read: bool,
) -> Result<HostTensor, Overstep> {
    let (name, spec) = (operand.name, operand.host.spec());
    let mut bytes = bound.download(stream).map_err(Overstep::Error)?;
    let band = bytes.split_off(spec.span_bytes());
    if let Some(at) = band.iter().position(|&b| b != GUARD) {
        return Err(Overstep::Guard(format!("{name}: byte {at} behind the buffer was overwritten")));
    }
    let got = HostTensor::from_bytes(spec, bytes).map_err(Overstep::Error)?;
    if only_read && got.bytes() != operand.host.bytes() {
        return Err(Overstep::Guard(format!("{name} is only read, yet it changed")));
    }
    if operand.access.writes()
        && let Some(at) = got.overstepped(GUARD)
    {
        return Err(Overstep::Guard(format!("{name}: byte {at}, between the elements, was overwritten")));
    }
    Ok(got)
}

fn coordinates(spec: &TensorSpec, mut index: usize) -> String {
    let mut at: Vec<usize> = Vec::new();
    for &dim in spec.dims().iter().rev() {
        at.push(index % dim.max(1));
        index /= dim.max(1);
    }
    at.reverse();
    format!("{at:?}")
}
