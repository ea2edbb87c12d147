//! Models: one file each, written against the contract, no device names.

mod bert;
mod deepseek;
mod embedded;
mod language;
mod llama;
mod mamba;
mod mamba2;
mod mixtral;
mod oracle;

pub use bert::Bert;
pub use deepseek::DeepseekV3;
pub use embedded::{embedded, embedded_file};
pub use language::{LanguageModel, ModelInfo, load, load_rank};
pub use llama::Llama;
pub use mamba::Mamba;
pub use mamba2::Mamba2;
pub use mixtral::Mixtral;
pub use oracle::{Int8Logits, OracleLlama};
