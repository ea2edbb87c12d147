//! Operator contracts as pure data: what each operator computes, on which shapes and element types, at
//! what cost, to what accuracy, and an f64 oracle to hold every backend against.
//!
//! Nothing here touches a device. An operator is one file with one type that implements [`Contract`];
//! `portolan-core` pairs that type with tensors, and a backend executes the pair.

mod contract;
mod cost;
mod determinism;
mod dtype;
mod error;
mod host;
mod layout;
mod lens;
mod philox;
mod shape;
mod spec;
mod tolerance;

pub mod activation;
pub mod arrange;
pub mod attention;
pub mod codec;
pub mod comm;
pub mod embedding;
pub mod kernel;
pub mod moe;
pub mod norm;
pub mod quant;
pub mod rope;
pub mod sample;
pub mod sort;
pub mod ssm;

pub use contract::{
    Access, Case, Cases, Contract, Fill, Operand, expect_dims, expect_dtype, expect_rank, expect_writable,
    streaming_cost,
};
pub use cost::Cost;
pub use determinism::Determinism;
pub use dtype::{DType, Element};
pub use embedding::EmbeddingSpec;
pub use error::{DeviceId, ErrorKind, Holder, OpError, OpName, Result, Unsupported};
pub use host::{HostTensor, rounded};
pub use layout::Layout;
pub use lens::LensSpec;
pub use philox::{philox_block, philox4x32_10, unit_from_bits};
pub use quant::{
    ActQuant, DequantizeSpec, LinearSpec, Offset, PackedContent, PackedSpec, PrepackSpec, QuantScheme,
    QuantSpec, ScaleKind, UnpackSpec, WeightSpec,
};
pub use shape::{MAX_RANK, Shape};
pub use spec::TensorSpec;
pub use tolerance::{Mismatch, Tolerance, max_abs_difference, normalized_difference};
