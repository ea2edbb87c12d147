//! Models: one file each, written against the contract, no device names.

mod embedded;
mod llama;
mod oracle;

pub use embedded::{embedded, embedded_file};
pub use llama::Llama;
pub use oracle::{Int8Logits, OracleLlama};
