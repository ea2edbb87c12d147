//! Attention over key-value caches: contracts of the operators that read and write a cache.
//!
//! `query.rs` holds what the operators share; each operator has its own file.

#[expect(clippy::module_inception, reason = "one operator, one file, named after it")]
mod attention;
mod geometry;
mod index_logits;
mod kv_cache_write;
mod kv_scales;
mod merge_attention;
mod mla_decode;
mod paged_attention;
mod query;
mod scores;
mod sparse_attention;

pub use crate::lens::LensSpec;
pub use attention::AttentionSpec;
pub use index_logits::IndexLogitsSpec;
pub use kv_cache_write::KvCacheWriteSpec;
pub use kv_scales::KvScales;
pub use merge_attention::MergeAttentionSpec;
pub use mla_decode::MlaDecodeSpec;
pub use paged_attention::PagedAttentionSpec;
pub use query::{AttentionMask, AttentionQuery};
pub use scores::AttentionScores;
pub use sparse_attention::SparseAttentionSpec;
