//! How much of an operator's result is promised to be the same bits.

/// Levels of determinism, ordered; each implies the one before. A stream option and part of every query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Determinism {
    /// Whatever is quickest; results stay within tolerance.
    Fast,
    /// Same device, shapes and inputs: same bits.
    #[default]
    RunToRun,
    /// In addition, a row's bits do not depend on the other rows of the batch.
    BatchInvariant,
}
