//! All cases of an operator, by kind: every loop over operators is generated from the one table.

use crate::case::check_drawn;
use crate::coverage::{Seen, survey};
use crate::drawn::{Drawn, hash};
use crate::{Failure, Promise, Subject, check_case};
use portolan_core::{Bind, Device, Dispatch, OpKind, OpQuery, Stream, Support};
use portolan_ops::{Case, Cases, Contract, Determinism, Result, Tolerance};

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

    pub(crate) fn takes(self, index: usize) -> bool {
        let ((part, parts), every) = (self.shard, self.every.max(1));
        index % every == self.phase % every && (index / every) % parts.max(1) == part
    }
}

/// Whether the device says it can run a case; what it says is held against what it does by the cases' own run alone.
fn possible<C: Contract + Dispatch>(stream: &Stream, case: &Case<C>) -> bool {
    let query = OpQuery { spec: case.contract.spec_ref(), determinism: stream.options().determinism };
    !matches!(stream.device().support(&query), Support::No(_))
}

/// Whoever is shown the cases of an operator, whichever it is.
pub(crate) trait Visitor {
    /// Takes the case at a place in the operator's list. What is drawn of it serves everything done with it here.
    fn case<C: Dispatch>(&mut self, index: usize, drawn: &Drawn<'_, C>);
}

fn visit<C: Cases + Dispatch>(visitor: &mut impl Visitor) -> Result<()> {
    let cases = C::cases()?;
    cases.iter().enumerate().for_each(|(index, case)| visitor.case(index, &Drawn::new(case)));
    Ok(())
}

/// The same bytes on every stream of a group, and in the end whether all could run it.
pub(crate) fn compare<C: Dispatch>(streams: &[Stream], drawn: &Drawn<'_, C>) -> Finding {
    match streams.iter().all(|stream| possible(stream, drawn.case)) {
        true => compare_drawn(streams, drawn),
        false => Ok(false),
    }
}

fn compare_drawn<C: Bind>(streams: &[Stream], drawn: &Drawn<'_, C>) -> Finding {
    let fail = |what: String| broken(Promise::Determinism, drawn.case, what);
    let seen = streams.iter().map(|stream| drawn.written_bytes(stream)).collect::<Result<Vec<_>>>();
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
    cases.iter().for_each(|case| outcome.add(compare_drawn(streams, &Drawn::new(case))));
    Ok(outcome)
}

/// Largest case that is repeated: a hundred runs of a larger one take seconds and show no more.
const REPEATED_BYTES: usize = 64 << 10;

/// Runs a case `times` times; the bytes written must hash alike.
pub(crate) fn repeat<C: Dispatch>(stream: &Stream, times: usize, drawn: &Drawn<'_, C>) -> Finding {
    let fail = |what: String| broken(Promise::Determinism, drawn.case, what);
    let mut bytes = 0;
    drawn.case.contract.operands(&mut |operand| bytes += operand.spec.span_bytes());
    if bytes > REPEATED_BYTES || !possible(stream, drawn.case) {
        return Ok(false);
    }
    let once = || drawn.written_bytes(stream).map(|bytes| bytes.map(hash)).map_err(|e| fail(e.to_string()));
    let first = once()?;
    for time in 1..if first.is_some() { times } else { 0 } {
        if once()? != first {
            return Err(fail(format!("run {time} wrote other bytes than run 0")));
        }
    }
    Ok(first.is_some())
}

/// Native against composed: the composition within the operator's tolerance of the oracle, as the native kernel
/// has to be, and so the two within twice of each other.
pub(crate) fn equivalence<C: Dispatch>(native: &Stream, composed: &Stream, drawn: &Drawn<'_, C>) -> Finding {
    let case = drawn.case;
    let query = OpQuery { spec: case.contract.spec_ref(), determinism: native.options().determinism };
    let overridden = native.device().support(&query) == Support::Native;
    if !overridden || !possible(composed, case) {
        return Ok(false);
    }
    let fail = |what: String| broken(Promise::Equivalence, case, what);
    let values = |stream| drawn.written_values(stream).map_err(|e| fail(e.to_string()));
    let (Some(one), Some(other)) = (values(native)?, values(composed)?) else { return Ok(false) };
    let oracle = drawn.expected().map_err(|e| fail(e.to_string()))?;
    for (at, tolerance) in case.contract.tolerance().into_iter().enumerate() {
        let twice = Tolerance { abs: 2.0 * tolerance.abs, rel: 2.0 * tolerance.rel };
        tolerance.check(&other[at], &oracle[at]).map_err(|m| fail(format!("composed: {m}")))?;
        twice.check(&one[at], &other[at]).map_err(|m| fail(format!("native against composed: {m}")))?;
    }
    Ok(true)
}

/// One function over kinds for each generic function over contracts: a custom operator brings its own reference,
/// so whoever made it runs it.
macro_rules! by_kind {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        /// Shows every case of an operator, in order.
        ///
        /// # Errors
        /// When the operator's own list of cases is not legal.
        pub(crate) fn visit_kind(kind: OpKind, visitor: &mut impl Visitor) -> Result<()> {
            match kind {
                $( OpKind::$kind => visit::<$spec>(visitor), )*
                $( OpKind::$fkind => visit::<$fspec>(visitor), )*
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
}

/// Runs every `every`-th case of one operator (1 for all).
///
/// # Errors
/// When the operator's own list of cases is not legal; failures of the device are in the outcome.
pub fn check_operator(subject: &Subject<'_>, kind: OpKind, every: usize) -> Result<Outcome> {
    struct Check<'a> {
        subject: &'a Subject<'a>,
        sample: Sample,
        outcome: Outcome,
    }
    impl Visitor for Check<'_> {
        fn case<C: Dispatch>(&mut self, index: usize, drawn: &Drawn<'_, C>) {
            if self.sample.takes(index) {
                self.outcome.add(check_drawn(self.subject, drawn));
            }
        }
    }
    let sample = Sample { every, ..Sample::ALL };
    let mut check = Check { subject, sample, outcome: Outcome::default() };
    visit_kind(kind, &mut check)?;
    Ok(check.outcome)
}

/// Runs every `every`-th case of one operator on all streams; those of a group must write the same bytes. Each group
/// counts a case for itself.
///
/// # Errors
/// When the operator's own list of cases is not legal.
pub fn compare_streams(groups: &[Vec<Stream>], kind: OpKind, every: usize) -> Result<Outcome> {
    struct Compare<'a> {
        groups: &'a [Vec<Stream>],
        sample: Sample,
        outcome: Outcome,
    }
    impl Visitor for Compare<'_> {
        fn case<C: Dispatch>(&mut self, index: usize, drawn: &Drawn<'_, C>) {
            for (group, streams) in self.groups.iter().enumerate().filter(|_| self.sample.takes(index)) {
                let of_group = |f: Failure| Failure { what: format!("group {group}: {}", f.what), ..f };
                self.outcome.add(compare(streams, drawn).map_err(of_group));
            }
        }
    }
    let sample = Sample { every, ..Sample::ALL };
    let mut compare = Compare { groups, sample, outcome: Outcome::default() };
    visit_kind(kind, &mut compare)?;
    Ok(compare.outcome)
}
