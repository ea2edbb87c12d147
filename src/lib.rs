//! Portolan: a tensor runtime in which model code is written once against one backend contract.
//!
//! This crate is what a program adds. [`fetch`] brings a known model to this machine, [`load`] reads weights
//! and configurations from GGUF and safetensors files on the host, [`tokenizer`] turns text into token
//! numbers and back, [`chat`] puts a conversation into a model's own form; the operators are in `portolan-ops`, the contract in `portolan-core`.

pub mod chat;
pub mod fetch;
pub mod load;
pub mod tokenizer;
