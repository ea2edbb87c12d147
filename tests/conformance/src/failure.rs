//! What a failed case says: enough to replay it.

use core::fmt;

/// One case that a device got wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The operator's case, by name.
    pub case: String,
    /// What went wrong, with the worst coordinate where there is one.
    pub what: String,
    /// The operator, as its contract prints.
    pub contract: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}\n    {}", self.case, self.what, self.contract)
    }
}
