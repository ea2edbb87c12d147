//! What a failed case says: which promise was broken, and enough to replay it.

use core::fmt;

/// The promise that a failed case broke; the first part of the failed test's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Promise {
    /// Results within tolerance of the f64 oracle.
    Oracle,
    /// Nothing is written outside of the outputs' elements, and inputs stay as they are.
    Guards,
    /// What `support()` says is what happens.
    Support,
    /// A refused call is `Unsupported`, and nothing else.
    Errors,
    /// A native kernel agrees with its own composition.
    Equivalence,
    /// The same call gives the same bits, every time and for any number of threads.
    Determinism,
    /// A row's bits do not depend on the other rows.
    Batch,
    /// Every operator, supported element type and edge has a case.
    Coverage,
    /// Any legal views are computed as the oracle says.
    Views,
    /// On a device without data: calls are accepted as promised, their cost is booked once, and no memory stays behind.
    Account,
}

impl Promise {
    /// Every one.
    pub(crate) const ALL: [Promise; 10] = [
        Promise::Oracle,
        Promise::Guards,
        Promise::Support,
        Promise::Errors,
        Promise::Equivalence,
        Promise::Determinism,
        Promise::Batch,
        Promise::Coverage,
        Promise::Views,
        Promise::Account,
    ];

    /// The first part of test names.
    pub const fn name(self) -> &'static str {
        match self {
            Promise::Oracle => "oracle",
            Promise::Guards => "guards",
            Promise::Support => "support",
            Promise::Errors => "errors",
            Promise::Equivalence => "equivalence",
            Promise::Determinism => "determinism",
            Promise::Batch => "batch",
            Promise::Coverage => "coverage",
            Promise::Views => "views",
            Promise::Account => "account",
        }
    }
}

/// One case that a device got wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was promised.
    pub promise: Promise,
    /// The operator's case, by name.
    pub case: String,
    /// What went wrong, with the worst coordinate where there is one.
    pub what: String,
    /// The operator, as its contract prints.
    pub contract: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}\n    {}", self.case, self.promise.name(), self.what, self.contract)
    }
}
