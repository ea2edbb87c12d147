//! Users' own operators under the same examination as those of the table: their contract brings the oracle, whoever
//! made them the cases.

use crate::operators::{compare_cases, run_cases};
use crate::{Outcome, Subject};
use portolan_core::{CustomSpec, Stream};
use portolan_ops::{Case, OpError, Result};

/// Runs the cases of a user's operator: against its oracle, with guard bytes around every operand, and with what the
/// device says of its support held against what happens.
///
/// # Errors
/// `Attribute` without a case: an operator nobody tries proves nothing.
pub fn check_custom(subject: &Subject<'_>, cases: &[Case<CustomSpec>]) -> Result<Outcome> {
    expect_cases(cases)?;
    Ok(run_cases(subject, cases))
}

/// Runs the cases of a user's operator on all streams, which must write the same bytes.
///
/// # Errors
/// `Attribute` without a case, and those of a run.
pub fn compare_custom(streams: &[Stream], cases: &[Case<CustomSpec>]) -> Result<Outcome> {
    expect_cases(cases)?;
    compare_cases(streams, cases)
}

fn expect_cases(cases: &[Case<CustomSpec>]) -> Result<()> {
    match cases.is_empty() {
        false => Ok(()),
        true => {
            let what = "are none; give at least an empty, a one-element, an unaligned and a strided one";
            Err(OpError::attribute("custom", "cases", what))
        }
    }
}
