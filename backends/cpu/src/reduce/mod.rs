//! Kernels that combine elements along dimensions: reductions, scans, the largest of a row, a row in order.
//!
//! Every combination is a fixed tree or a fixed sequence over one row, so a row's bits depend on that row alone.

pub(crate) mod fold;
pub(crate) mod scan;
pub(crate) mod sort;
pub(crate) mod top_k;
