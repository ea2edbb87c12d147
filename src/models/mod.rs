//! Models: one file each, written against the contract, no device names.

mod llama;

pub use llama::Llama;
