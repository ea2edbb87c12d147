//! What became of the tests: name, verdict, and a summary that a person can read.

use core::fmt;
use std::time::Duration;

/// What became of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ran and held.
    Passed,
    /// The device says it cannot do this, and does not: the reason.
    Unsupported(String),
    /// Known to fail, and it did: the reason given for expecting it.
    ExpectedFailure(String),
    /// The backend is not available here, so nothing ran: why.
    Skipped(String),
    /// It does not hold: what was seen and wanted.
    Failed(String),
}

/// One test and what became of it.
#[derive(Clone, Debug)]
pub struct TestOutcome {
    /// The promise and what it was tried on: `oracle/gemm/gemm_nt/f32/one`, `memory/a_freed_block_…`.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
}

/// Tests and what became of them.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order they ran.
    pub outcomes: Vec<TestOutcome>,
}

impl Report {
    /// The tests that do not hold.
    pub fn failures(&self) -> impl Iterator<Item = &TestOutcome> {
        self.outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Failed(_)))
    }

    /// How many passed.
    pub fn passed(&self) -> usize {
        self.outcomes.iter().filter(|o| o.verdict == Verdict::Passed).count()
    }

    /// Why nothing ran, when the backend is not available here.
    pub fn skipped(&self) -> Option<&str> {
        self.outcomes.iter().find_map(|o| match &o.verdict {
            Verdict::Skipped(why) => Some(why.as_str()),
            _ => None,
        })
    }

    /// Books one test.
    pub(crate) fn add(&mut self, name: impl Into<String>, verdict: Verdict, took: Duration) {
        self.outcomes.push(TestOutcome { name: name.into(), verdict, took });
    }

    /// Appends another report.
    pub fn extend(&mut self, other: Report) {
        self.outcomes.extend(other.outcomes);
    }
}

/// The counts on one line, then failures, then whatever else did not run as it should.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count =
            |wanted: fn(&Verdict) -> bool| self.outcomes.iter().filter(|o| wanted(&o.verdict)).count();
        write!(
            f,
            "{} passed, {} unsupported, {} failed, {} failed as expected, {} skipped",
            self.passed(),
            count(|v| matches!(v, Verdict::Unsupported(_))),
            count(|v| matches!(v, Verdict::Failed(_))),
            count(|v| matches!(v, Verdict::ExpectedFailure(_))),
            count(|v| matches!(v, Verdict::Skipped(_))),
        )?;
        for outcome in &self.outcomes {
            match &outcome.verdict {
                Verdict::Failed(what) => write!(f, "\nFAILED {}: {what}", outcome.name)?,
                Verdict::Skipped(why) => write!(f, "\nSKIPPED {}: {why}", outcome.name)?,
                Verdict::ExpectedFailure(why) => write!(f, "\nexpected failure {}: {why}", outcome.name)?,
                Verdict::Passed | Verdict::Unsupported(_) => {}
            }
        }
        Ok(())
    }
}
