//! What fuzzing and the ordinary tests both do with the bytes of a GGUF file: everything a program could.
//!
//! Included by path, so that both run the same code: see `fuzz_targets/gguf.rs` and `tests/load/corpus.rs`.

use portolan::load::config::LlamaConfig;
use portolan::load::gguf::Gguf;
use portolan::load::{Bytes, LoadError, WeightSource};

/// Reads the head, describes every entry, loads every tensor; the bytes held by all weights together.
///
/// # Errors
/// The first error. Tensors after one that cannot be loaded are loaded all the same.
pub(crate) fn read_everything(bytes: &[u8]) -> Result<usize, LoadError> {
    let file = Gguf::parse(Box::new(Bytes::new("bytes", bytes.to_vec())))?;
    for (key, value) in file.metadata().entries() {
        assert!(!value.describe().contains('\n'), "{key:?}");
    }
    let _ = LlamaConfig::from_source(&file);
    let (mut held, mut first) = (0, None);
    for name in WeightSource::names(&file) {
        match file.load(name) {
            Ok(weight) => {
                assert_eq!(weight.shape(), file.tensor(name)?.shape());
                assert_eq!(weight.to_f32().len(), weight.shape().numel());
                held += weight.bytes();
            }
            Err(error) => first = first.or(Some(error)),
        }
    }
    // Codes of 5 and 6 bits are held in bytes: at most 34 bytes for a block of 22.
    assert!(held <= 2 * bytes.len(), "{held} bytes held for a file of {}", bytes.len());
    first.map_or(Ok(held), Err)
}
