//! The CPU backend: explicit SIMD chosen at run time, one worker team per device, the same bits for any
//! number of threads.

#[allow(dead_code, reason = "called by the operators that bind it")]
mod gemm;
mod isa;
mod pool;
mod simd;

pub use isa::Isa;
pub use pool::Team;
