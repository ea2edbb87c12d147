//! All cases of an operator, by kind: generated from the one table of operators.

use crate::{Failure, Subject, check_case, written_bytes};
use portolan_core::{Bind, Dispatch, OpKind, Stream};
use portolan_ops::{Case, Cases, Result};

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

fn run<C: Cases + Dispatch>(subject: &Subject<'_>, every: usize) -> Result<Outcome> {
    Ok(run_cases(subject, C::cases()?.iter().step_by(every.max(1))))
}

pub(crate) fn run_cases<'a, C: Bind>(
    subject: &Subject<'_>,
    cases: impl IntoIterator<Item = &'a Case<C>>,
) -> Outcome {
    let mut outcome = Outcome::default();
    for case in cases {
        match check_case(subject, case) {
            Ok(true) => outcome.passed += 1,
            Ok(false) => outcome.unsupported += 1,
            Err(failure) => outcome.failures.push(failure),
        }
    }
    outcome
}

fn compare<C: Cases + Dispatch>(streams: &[Stream], every: usize) -> Result<Outcome> {
    compare_cases(streams, C::cases()?.iter().step_by(every.max(1)))
}

pub(crate) fn compare_cases<'a, C: Bind>(
    streams: &[Stream],
    cases: impl IntoIterator<Item = &'a Case<C>>,
) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for case in cases {
        let seen = streams.iter().map(|stream| written_bytes(stream, case)).collect::<Result<Vec<_>>>()?;
        match seen.split_first() {
            None | Some((None, _)) => outcome.unsupported += 1,
            Some((one, others)) => match others.iter().position(|other| other != one) {
                None => outcome.passed += 1,
                Some(at) => outcome.failures.push(Failure {
                    case: case.name.clone(),
                    what: format!("stream {} wrote other bytes than the first", at + 1),
                    contract: format!("{:?}", case.contract),
                }),
            },
        }
    }
    Ok(outcome)
}

macro_rules! dispatch {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        /// Runs every `every`-th case of one operator (1 for all).
        ///
        /// # Errors
        /// When the operator's own list of cases is not legal; failures of the device are in the outcome.
        pub fn check_operator(subject: &Subject<'_>, kind: OpKind, every: usize) -> Result<Outcome> {
            match kind {
                $( OpKind::$kind => run::<$spec>(subject, every), )*
                $( OpKind::$fkind => run::<$fspec>(subject, every), )*
                // A custom operator has its own list of cases: see `check_custom`.
                _ => Ok(Outcome::default()),
            }
        }

        /// Runs every `every`-th case of one operator on all streams, which must write the same bytes.
        ///
        /// # Errors
        /// When the operator's own list of cases is not legal, or a run fails.
        pub fn compare_streams(streams: &[Stream], kind: OpKind, every: usize) -> Result<Outcome> {
            match kind {
                $( OpKind::$kind => compare::<$spec>(streams, every), )*
                $( OpKind::$fkind => compare::<$fspec>(streams, every), )*
                _ => Ok(Outcome::default()),
            }
        }
    };
}
portolan_core::for_each_op!(dispatch);
