//! Attention over key-value caches: contracts of the operators that read and write a cache.
//!
//! `lens.rs` and `query.rs` hold what the operators share; each operator has its own file.

#[expect(clippy::module_inception, reason = "one operator, one file, named after it")]
mod attention;
mod geometry;
mod index_logits;
mod kv_cache_write;
mod kv_scales;
mod lens;
mod merge_attention;
mod mla_decode;
mod paged_attention;
mod query;
mod scores;
mod sparse_attention;

pub use attention::AttentionSpec;
pub use index_logits::IndexLogitsSpec;
pub use kv_cache_write::KvCacheWriteSpec;
pub use kv_scales::KvScales;
pub use lens::LensSpec;
pub use merge_attention::MergeAttentionSpec;
pub use mla_decode::MlaDecodeSpec;
pub use paged_attention::PagedAttentionSpec;
pub use query::{AttentionMask, AttentionQuery};
pub use scores::AttentionScores;
pub use sparse_attention::SparseAttentionSpec;
