//! The worker team that executes one kernel at a time.

mod team;

pub use team::Team;
