//! Models: one file each, written against the contract, no device names.

mod embedded;
mod language;
mod llama;
mod oracle;

pub use embedded::{embedded, embedded_file};
pub use language::{LanguageModel, ModelInfo, load};
pub use llama::Llama;
pub use oracle::{Int8Logits, OracleLlama};
