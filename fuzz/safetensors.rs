//! What fuzzing and the ordinary tests both do with the bytes of a safetensors file, or of the index of several.
//!
//! Included by path, so that both run the same code: see `fuzz_targets/safetensors.rs` and `tests/load/corpus.rs`.

use portolan::load::safetensors::SafetensorsModel;
use portolan::load::{Bytes, LoadError, WeightSource, open};
use std::path::Path;

/// Loads every tensor; the bytes held by all of them together.
///
/// # Errors
/// The first error.
pub(crate) fn read_file(bytes: &[u8]) -> Result<usize, LoadError> {
    read_all(&SafetensorsModel::parse(Box::new(Bytes::new("bytes", bytes.to_vec())))?, bytes.len())
}

/// As [`read_file`], of the folder `scratch`, whose index these bytes become. It has two shards of one byte.
///
/// # Errors
/// The first error.
///
/// # Panics
/// When the folder cannot be written.
pub(crate) fn read_index(bytes: &[u8], scratch: &Path) -> Result<usize, LoadError> {
    let write = |name: &str, bytes: &[u8]| {
        assert!(std::fs::write(scratch.join(name), bytes).is_ok(), "{} is not writable", scratch.display());
    };
    for name in ["a", "b"] {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[7]].concat();
        write(&format!("{name}.safetensors"), &file);
    }
    write("config.json", b"{}");
    write("model.safetensors.index.json", bytes);
    read_all(open(scratch)?.as_ref(), 2)
}

fn read_all(model: &dyn WeightSource, stored: usize) -> Result<usize, LoadError> {
    let mut held = 0;
    for name in model.names() {
        model.stored_as(name)?;
        let weight = model.load(name)?;
        assert_eq!(weight.shape(), &model.shape(name)?);
        held += weight.bytes();
    }
    assert!(held <= stored, "{held} bytes held for {stored}");
    Ok(held)
}
