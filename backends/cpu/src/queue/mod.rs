//! Streams and events of the CPU: in-order queues with three ways to execute them.

mod event;
pub(crate) mod handoff;
mod latch;
mod stream;

pub(crate) use stream::{CpuStream, Exec, Witness};
