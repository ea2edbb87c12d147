//! The parts of the CPU's streams that share memory between threads.

#[path = "../../backends/cpu/src/queue/handoff.rs"]
pub(crate) mod handoff;
#[path = "../../backends/cpu/src/queue/latch.rs"]
pub(crate) mod latch;
