//! How a CPU backend is made: executor, threads, instruction set, memory limit.

use crate::Isa;

/// Who executes a stream's work, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Executor {
    /// The calling thread, before `run` returns.
    Inline,
    /// One thread a stream, in order.
    #[default]
    Queued,
    /// [`Executor::Queued`] with random delays, a pure function of the seed, the stream and the position:
    /// a missing wait or a buffer freed too early shows as a wrong answer.
    Chaotic {
        /// Chooses the delays.
        seed: u64,
    },
}

/// Options of a CPU backend.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads that work on one kernel; `None`: as many as the process may use. Never changes bits.
    pub threads: Option<usize>,
    /// The instruction-set path; `None`: the widest this processor has.
    pub isa: Option<Isa>,
    /// Who executes.
    pub executor: Executor,
    /// Bytes the device may reserve; `None`: 80 % of what is available now (Linux kills instead of failing).
    pub memory_limit: Option<usize>,
}
