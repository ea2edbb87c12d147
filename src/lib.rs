//! Portolan: a tensor runtime in which model code is written once against one backend contract.
//!
//! This crate is what a program adds. It opens devices by name ([`open`]), re-exports the contract
//! (`portolan-core`) and holds what model authors need above it: [`load`] reads weights and configurations,
//! [`fetch`] brings a known model to this machine, [`tokenizer`] and [`chat`] turn text into token numbers,
//! [`nn`] and [`models`] compute, [`generate`] writes text, `plan` says what a pass would cost; [`TextModel`] is all of
//! these for one file, [`SentenceEncoder`] turns sentences into vectors. [`explain`] shows what ran, and where two devices differ.
//!
//! ```
//! use portolan::{Shape, StreamOptions, ops};
//!
//! let device = portolan::open("cpu:0")?;
//! let stream = device.stream(StreamOptions::default())?;
//! let a = stream.upload(&[1.0f32, 2.0, 3.0, 4.0], &Shape::new(&[2, 2])?)?;
//! let product = ops::gemm_nt(&stream, &a, &a)?;
//! assert_eq!(stream.download::<f32>(&product)?.wait()?, [5.0, 11.0, 11.0, 25.0]);
//! # Ok::<(), portolan::OpError>(())
//! ```

pub mod chat;
mod devices;
mod error;
pub mod explain;
pub mod fetch;
pub mod generate;
pub mod load;
pub mod models;
pub mod nn;
#[cfg(feature = "meta")]
pub mod plan;
mod sentence_encoder;
#[cfg(feature = "cann")]
pub mod sim;
pub mod support;
mod text_model;
pub mod tokenizer;

pub use devices::{open, registry};
pub use error::Error;
#[cfg(feature = "cann")]
pub use portolan_cann as cann;
pub use portolan_core::{
    Backend, Buffer, CommConfig, CommId, Communicator, CustomOp, CustomSpec, Device, DeviceInfo, Event,
    ExpertParallel, Experts, Fallback, Graph, HostBuffer, Lens, OpKind, OpUse, P2p, Pending, QuantTensor,
    Registry, Scope, Stream, StreamOptions, StreamReport, Support, Tensor, Weight, call, ops,
};
#[cfg(feature = "cpu")]
pub use portolan_cpu as cpu;
#[cfg(feature = "meta")]
pub use portolan_meta as meta;
pub use portolan_ops::comm::ReduceOp;
pub use portolan_ops::{Cost, DType, Determinism, DeviceId, Element, ErrorKind, OpError, Shape, TensorSpec};
pub use sentence_encoder::SentenceEncoder;
pub use text_model::TextModel;
