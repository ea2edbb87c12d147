//! The CPU backend: explicit SIMD chosen at run time, one worker team per device, the same bits for any
//! number of threads.
//!
//! `kernels.rs` and `fused.rs` hand each operator to its file in `op/`, which plans it and enqueues its
//! kernel; kernels live beside, by family, over raw memory.

mod activation;
mod attention;
mod comm;
mod custom;
mod elementwise;
mod fused;
mod gemm;
mod isa;
mod kernels;
mod memory;
mod moe;
mod movement;
mod norm;
mod op;
mod options;
mod pool;
mod quant;
mod queue;
mod reduce;
mod rows;
mod sample;
mod simd;
mod ssm;
mod value;

pub use custom::{CpuKernel, CpuOperand};
pub use isa::Isa;
pub use options::{CpuOptions, Executor};
pub use pool::Team;

use memory::Budget;
use portolan_core::groups::Groups;
use portolan_core::sync::atomic::{AtomicU64, Ordering};
use portolan_core::{Backend, DeviceInfo, OpQuery, Ordinal, Queue, RawStream, StreamOptions, Support};
use portolan_ops::{DeviceId, Result};
use queue::{CpuStream, Exec};
use std::sync::Arc;

/// The CPU as a backend with one device, `cpu:0`.
pub struct CpuBackend {
    isa: Isa,
    team: Arc<Team>,
    executor: Executor,
    budget: Budget,
    streams: AtomicU64,
    groups: Groups<comm::Group>,
}

impl CpuBackend {
    /// A backend made as the options say.
    ///
    /// # Errors
    /// `Unavailable` for an instruction set this processor lacks, or when a thread cannot be started.
    pub fn new(options: CpuOptions) -> Result<Arc<Self>> {
        let isa = options.isa.unwrap_or_else(Isa::detect).require()?;
        let threads =
            options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        Ok(Arc::new(Self {
            isa,
            team: Arc::new(Team::new(threads)?),
            executor: options.executor,
            budget: Budget::new(options.memory_limit),
            streams: AtomicU64::new(1),
            groups: Groups::default(),
        }))
    }

    /// The instruction-set path in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads that work on one kernel.
    pub fn threads(&self) -> usize {
        self.team.threads()
    }
}

impl Queue for CpuBackend {
    fn stream_create(&self, _device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        let threads = options.threads.unwrap_or(usize::MAX).clamp(1, self.team.threads());
        let exec = Exec { team: self.team.clone(), threads, isa: self.isa };
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(CpuStream::new(self.executor, exec, number, options.timeout)?))
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        Ok(vec![DeviceInfo {
            id: DeviceId::new("cpu", 0),
            name: format!("{} threads, {:?}, {:?} executor", self.team.threads(), self.isa, self.executor),
            memory_bytes: self.budget.limit(),
            flushes_denormals: false,
            keeps_data: true,
        }])
    }

    fn support(&self, _device: Ordinal, query: &OpQuery<'_>) -> Support {
        op::support(query)
    }
}
