//! Attention kernels: flash-style prefill and split-KV decode over contiguous and paged caches, cache writes
//! and rotary embedding.
//!
//! One order of operations per query row (`softmax`) serves both shapes of query block (`tile` for many rows,
//! `few` for few), so a row's bits depend on neither its neighbours, nor the split, nor the threads. `task`
//! says what is to be done, `schedule` in which pieces, `unit` does one piece, `work` by what steps.

#![allow(dead_code, unused_imports, reason = "taken by the operator layer as it arrives")]

mod block;
mod cache_write;
mod few;
mod form;
mod index;
mod merge;
mod rope;
mod schedule;
mod scores;
mod sequences;
mod softmax;
mod sparse;
mod task;
#[cfg(test)]
mod tests;
mod tile;
mod turned;
mod unit;
mod unseen;
mod view;
mod work;

pub(crate) use cache_write::{CacheWriteTask, kv_cache_write};
pub(crate) use index::{IndexTask, index_logits, plan_index};
pub(crate) use merge::{MergeTask, merge_attention, plan_merge};
pub(crate) use rope::{RopeTask, rope};
pub(crate) use schedule::attention;
pub(crate) use sparse::{SparseTask, sparse_attention};
pub(crate) use task::{AttentionBases, AttentionTask, plan, plan_heads};
