//! The parts of the CPU's collectives that share memory between threads.

#[path = "../../backends/cpu/src/comm/gate.rs"]
pub(crate) mod gate;
