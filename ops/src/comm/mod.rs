//! Operators over a group of ranks: what every rank calls, what all of them together compute, and what they tell each
//! other before data moves.
//!
//! A contract is one rank's part. Its oracle takes the parts and the inputs of all ranks at once, and the
//! [`Signature`]s of all parts decide whether they belong together.

mod all_gather;
mod all_reduce;
mod all_to_all;
mod barrier;
mod broadcast;
mod collective;
mod exchange;
mod expert_parallel_ffn;
mod ranks;
mod reduce_op;
mod reduce_scatter;
mod reduce_to;
mod rows;
mod signature;

pub use all_gather::AllGatherSpec;
pub use all_reduce::AllReduceSpec;
pub use all_to_all::AllToAllSpec;
pub use barrier::BarrierSpec;
pub use broadcast::BroadcastSpec;
pub use collective::{Collective, CollectiveCases, GroupCase};
pub use exchange::{ExchangeSpec, Leg};
pub use expert_parallel_ffn::ExpertParallelFfnSpec;
pub use ranks::Ranks;
pub use reduce_op::ReduceOp;
pub use reduce_scatter::ReduceScatterSpec;
pub use reduce_to::ReduceToSpec;
pub use signature::{Part, Signature};
