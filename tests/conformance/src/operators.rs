//! All cases of an operator, by kind: every loop over operators is generated from the one table.

use crate::account::account_case;
use crate::case::{expected, hash, written_values};
use crate::coverage::{Seen, survey};
use crate::{Failure, Promise, Subject, check_case, written_bytes};
use portolan_core::{Bind, Device, Dispatch, OpKind, OpQuery, Stream, Support};
use portolan_ops::{Case, Cases, Contract, Determinism, OpError, Result, Tolerance};

/// What became of an operator's cases.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Cases that ran and agreed with the oracle.
    pub passed: usize,
    /// Cases the device said it cannot do.
    pub unsupported: usize,
    /// Cases that failed.
    pub failures: Vec<Failure>,
}

/// What a check says of one case: held, not possible here, or not so.
pub(crate) type Finding = core::result::Result<bool, Failure>;

/// Receives the name of each case and what was found.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(&str, Finding);

pub(crate) fn broken<C: Contract>(
    promise: Promise,
    case: &Case<C>,
    what: impl core::fmt::Display,
) -> Failure {
    let contract = format!("{:?}", case.contract);
    Failure { promise, case: case.name.clone(), what: what.to_string(), contract }
}

/// Which cases of a list: every so many-th, and of those the part of a shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) every: usize,
    /// The first one taken.
    pub(crate) phase: usize,
    /// `(i, n)`: the i-th of n parts.
    pub(crate) shard: (usize, usize),
}

impl Sample {
    pub(crate) const ALL: Sample = Sample { every: 1, phase: 0, shard: (0, 1) };

    fn takes(self, index: usize) -> bool {
        let ((part, parts), every) = (self.shard, self.every.max(1));
        index % every == self.phase % every && (index / every) % parts.max(1) == part
    }
}

/// Whether the device says it can run a case; what it says is held against what it does by [`run`] alone.
fn possible<C: Contract + Dispatch>(stream: &Stream, case: &Case<C>) -> bool {
    let query = OpQuery { spec: case.contract.spec_ref(), determinism: stream.options().determinism };
    !matches!(stream.device().support(&query), Support::No(_))
}

fn each<C: Cases>(sample: Sample, sink: Sink<'_>, mut check: impl FnMut(&Case<C>) -> Finding) -> Result<()> {
    for (_, case) in C::cases()?.iter().enumerate().filter(|(index, _)| sample.takes(*index)) {
        sink(&case.name, check(case));
    }
    Ok(())
}

fn run<C: Cases + Dispatch>(subject: &Subject<'_>, sample: Sample, sink: Sink<'_>) -> Result<()> {
    each::<C>(sample, sink, |case| check_case(subject, case))
}

fn account<C: Cases + Dispatch>(stream: &Stream, sample: Sample, sink: Sink<'_>) -> Result<()> {
    each::<C>(sample, sink, |case| account_case(stream, case))
}

fn compare<C: Cases + Dispatch>(streams: &[Stream], sample: Sample, sink: Sink<'_>) -> Result<()> {
    each::<C>(sample, sink, |case| match streams.iter().all(|stream| possible(stream, case)) {
        true => compare_case(streams, case),
        false => Ok(false),
    })
}

fn compare_case<C: Bind>(streams: &[Stream], case: &Case<C>) -> Finding {
    let fail = |what: String| broken(Promise::Determinism, case, what);
    let seen = streams.iter().map(|stream| written_bytes(stream, case)).collect::<Result<Vec<_>>>();
    let seen = seen.map_err(|e| fail(e.to_string()))?;
    match seen.split_first() {
        None | Some((None, _)) => Ok(false),
        Some((one, others)) => match others.iter().position(|other| other != one) {
            None => Ok(true),
            Some(at) => Err(fail(format!("stream {} wrote other bytes than the first", at + 1))),
        },
    }
}

pub(crate) fn run_cases<C: Bind>(subject: &Subject<'_>, cases: &[Case<C>]) -> Outcome {
    let mut outcome = Outcome::default();
    cases.iter().for_each(|case| outcome.add(check_case(subject, case)));
    outcome
}

pub(crate) fn compare_cases<C: Bind>(streams: &[Stream], cases: &[Case<C>]) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    cases.iter().for_each(|case| outcome.add(compare_case(streams, case)));
    Ok(outcome)
}

/// Largest case that is repeated: a hundred runs of a larger one take seconds and show no more.
const REPEATED_BYTES: usize = 64 << 10;

/// Runs every sampled case `times` times; the bytes written must hash alike.
fn repeat<C: Cases + Dispatch>(stream: &Stream, sample: Sample, times: usize, sink: Sink<'_>) -> Result<()> {
    each::<C>(sample, sink, |case| {
        let fail = |what: String| broken(Promise::Determinism, case, what);
        let mut bytes = 0;
        case.contract.operands(&mut |operand| bytes += operand.spec.span_bytes());
        if bytes > REPEATED_BYTES || !possible(stream, case) {
            return Ok(false);
        }
        let once =
            || -> core::result::Result<Option<u64>, OpError> { Ok(written_bytes(stream, case)?.map(hash)) };
        let first = once().map_err(|e| fail(e.to_string()))?;
        for time in 1..if first.is_some() { times } else { 0 } {
            if once().map_err(|e| fail(e.to_string()))? != first {
                return Err(fail(format!("run {time} wrote other bytes than run 0")));
            }
        }
        Ok(first.is_some())
    })
}

/// Native against composed: the composition within the operator's tolerance of the oracle, as the native kernel
/// has to be, and so the two within twice of each other.
fn equivalence<C: Cases + Dispatch>(
    native: &Stream,
    composed: &Stream,
    sample: Sample,
    sink: Sink<'_>,
) -> Result<()> {
    each::<C>(sample, sink, |case| {
        let query = OpQuery { spec: case.contract.spec_ref(), determinism: native.options().determinism };
        let overridden = native.device().support(&query) == Support::Native;
        if !overridden || !possible(composed, case) {
            return Ok(false);
        }
        let fail = |what: String| broken(Promise::Equivalence, case, what);
        let values = |stream| written_values(stream, case).map_err(|e| fail(e.to_string()));
        let (Some(one), Some(other)) = (values(native)?, values(composed)?) else { return Ok(false) };
        let oracle = expected(case).map_err(|e| fail(e.to_string()))?;
        for (at, tolerance) in case.contract.tolerance().into_iter().enumerate() {
            let twice = Tolerance { abs: 2.0 * tolerance.abs, rel: 2.0 * tolerance.rel };
            tolerance.check(&other[at], &oracle[at]).map_err(|m| fail(format!("composed: {m}")))?;
            twice.check(&one[at], &other[at]).map_err(|m| fail(format!("native against composed: {m}")))?;
        }
        Ok(true)
    })
}

/// One function over kinds for each generic function over contracts: a custom operator brings its own reference,
/// so whoever made it runs it.
macro_rules! by_kind {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        pub(crate) fn run_kind(
            kind: OpKind,
            subject: &Subject<'_>,
            sample: Sample,
            sink: Sink<'_>,
        ) -> Result<()> {
            match kind {
                $( OpKind::$kind => run::<$spec>(subject, sample, sink), )*
                $( OpKind::$fkind => run::<$fspec>(subject, sample, sink), )*
                _ => Ok(()),
            }
        }

        pub(crate) fn account_kind(
            kind: OpKind,
            stream: &Stream,
            sample: Sample,
            sink: Sink<'_>,
        ) -> Result<()> {
            match kind {
                $( OpKind::$kind => account::<$spec>(stream, sample, sink), )*
                $( OpKind::$fkind => account::<$fspec>(stream, sample, sink), )*
                _ => Ok(()),
            }
        }

        pub(crate) fn compare_kind(
            kind: OpKind,
            streams: &[Stream],
            sample: Sample,
            sink: Sink<'_>,
        ) -> Result<()> {
            match kind {
                $( OpKind::$kind => compare::<$spec>(streams, sample, sink), )*
                $( OpKind::$fkind => compare::<$fspec>(streams, sample, sink), )*
                _ => Ok(()),
            }
        }

        pub(crate) fn repeat_kind(
            kind: OpKind,
            stream: &Stream,
            sample: Sample,
            times: usize,
            sink: Sink<'_>,
        ) -> Result<()> {
            match kind {
                $( OpKind::$kind => repeat::<$spec>(stream, sample, times, sink), )*
                $( OpKind::$fkind => repeat::<$fspec>(stream, sample, times, sink), )*
                _ => Ok(()),
            }
        }

        pub(crate) fn equivalence_kind(
            kind: OpKind,
            native: &Stream,
            composed: &Stream,
            sample: Sample,
            sink: Sink<'_>,
        ) -> Result<()> {
            match kind {
                $( OpKind::$fkind => equivalence::<$fspec>(native, composed, sample, sink), )*
                // Operators of the core have no composition.
                _ => Ok(()),
            }
        }

        pub(crate) fn survey_kind(kind: OpKind, device: &Device, level: Determinism) -> Result<Seen> {
            match kind {
                $( OpKind::$kind => survey::<$spec>(device, level), )*
                $( OpKind::$fkind => survey::<$fspec>(device, level), )*
                _ => Ok(Seen::default()),
            }
        }
    };
}
portolan_core::for_each_op!(by_kind);

impl Outcome {
    fn add(&mut self, finding: Finding) {
        match finding {
            Ok(true) => self.passed += 1,
            Ok(false) => self.unsupported += 1,
            Err(failure) => self.failures.push(failure),
        }
    }

    fn collect(run: impl FnOnce(Sink<'_>) -> Result<()>) -> Result<Self> {
        let mut outcome = Outcome::default();
        run(&mut |_, finding| outcome.add(finding))?;
        Ok(outcome)
    }
}

/// Runs every `every`-th case of one operator (1 for all).
///
/// # Errors
/// When the operator's own list of cases is not legal; failures of the device are in the outcome.
pub fn check_operator(subject: &Subject<'_>, kind: OpKind, every: usize) -> Result<Outcome> {
    Outcome::collect(|sink| run_kind(kind, subject, Sample { every, ..Sample::ALL }, sink))
}

/// Runs every `every`-th case of one operator on all streams, which must write the same bytes.
///
/// # Errors
/// When the operator's own list of cases is not legal.
pub fn compare_streams(streams: &[Stream], kind: OpKind, every: usize) -> Result<Outcome> {
    Outcome::collect(|sink| compare_kind(kind, streams, Sample { every, ..Sample::ALL }, sink))
}
