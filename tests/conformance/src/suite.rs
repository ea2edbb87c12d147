//! All cases of an operator, by kind: generated from the one table of operators.

use crate::{Failure, Subject, check_case};
use portolan_core::{Dispatch, OpKind};
use portolan_ops::{Cases, Result};

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
    let mut outcome = Outcome::default();
    for case in C::cases()?.iter().step_by(every.max(1)) {
        match check_case(subject, case) {
            Ok(true) => outcome.passed += 1,
            Ok(false) => outcome.unsupported += 1,
            Err(failure) => outcome.failures.push(failure),
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
                // A custom operator brings its own reference; whoever made it runs it.
                _ => Ok(Outcome::default()),
            }
        }
    };
}
portolan_core::for_each_op!(dispatch);
