//! What fuzzing and the ordinary tests both do with the text of a `config.json`.
//!
//! Included by path, so that both run the same code: see `fuzz_targets/config.rs` and `tests/load/corpus.rs`.

use portolan::load::LoadError;
use portolan::load::config::LlamaConfig;
use std::path::Path;

/// Reads a configuration; text that is no JSON has none.
///
/// # Errors
/// As [`LlamaConfig::from_json`].
pub(crate) fn read_config(bytes: &[u8]) -> Option<Result<LlamaConfig, LoadError>> {
    let json = serde_json::from_slice(bytes).ok()?;
    let config = LlamaConfig::from_json(Path::new("config.json"), &json);
    if let Ok(config) = &config {
        // What is accepted can be computed with.
        assert!(config.num_heads.is_multiple_of(config.num_kv_heads));
        assert!(config.q_width() >= config.kv_width());
        assert!(config.rotary_dim <= config.head_dim);
    }
    Some(config)
}
