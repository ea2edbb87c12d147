//! The worker team that executes one kernel at a time, and the memory its threads reuse between kernels.
//!
//! Kernels know only these two; who calls them is decided by the streams.

#[allow(dead_code, reason = "taken by kernels as they arrive")]
pub(crate) mod scratch;
mod team;

pub use team::Team;
