//! Reading weights: against files written by other programs, and against files written to do harm.
//!
//! `writer.rs` makes files, `golden.rs` compares with the `gguf` package, the others attack.

// Clippy's exemption covers functions marked as tests only, and these files have helpers beside them.
#![allow(clippy::unwrap_used)]

mod config;
mod corpus;
mod golden;
mod hostile_gguf;
mod hostile_safetensors;
mod writer;
