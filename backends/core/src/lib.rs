//! The contract of portolan: handles for devices, streams, memory and operators, and the traits a backend
//! implements.
//!
//! A program holds a [`Device`] and [`Stream`]s, and launches operators with [`Stream::run`]. A backend
//! implements [`Backend`]; everything that makes the library safe (ordering between streams, lifetime of
//! memory in flight, overlap checks, error propagation) lives here, once.

mod arrange;
mod backend;
mod buffer;
pub mod call;
mod comm;
pub mod compose;
mod custom;
pub mod decorate;
mod device;
mod event;
mod expert_parallel;
mod experts;
mod form;
mod graph;
pub mod groups;
mod index;
mod launch;
pub mod meeting;
mod op;
pub mod ops;
mod order;
mod pool;
mod registry;
mod report;
mod returns;
mod scope;
mod stream;
mod support;
pub mod sync;
mod tensor;
mod transfer;
mod weight;

pub use backend::{
    Backend, Collectives, Fault, FusedOps, Kernels, Memory, MemoryInfo, MemoryTraits, Ordinal, Queue,
    RawCopy, RawEvent, RawGraph, RawStream, Segment, Support,
};
pub use buffer::{Buffer, HostBuffer};
pub use call::SpecRef;
pub use call::{CollectiveCall, CollectiveDispatch, CollectiveKind, CollectiveRef, P2p};
pub use comm::{CommConfig, CommId, Communicator, RawCommunicator};
pub use custom::CustomReference;
pub use device::{Device, DeviceInfo};
pub use event::Event;
pub use expert_parallel::{DispatchCounts, Dispatched, ExpertParallel};
pub use experts::Experts;
pub use graph::Graph;
pub use launch::Launch;
pub use op::{Arg, Bind, Call, CustomKernel, CustomOp, CustomSpec, Dispatch, Op, OpKind, OpQuery};
pub use order::Upstream;
pub use pool::PoolStats;
pub use registry::Registry;
pub use report::{OpUse, StreamReport};
pub use scope::{Path, Scope};
pub use stream::{Fallback, Stream, StreamOptions};
pub use support::{OpSupport, SupportCount, native_fused};
pub use tensor::Tensor;
pub use transfer::Pending;
pub use weight::{Consumer, Lens, PackedWeight, Packing, QuantTensor, Weight};
