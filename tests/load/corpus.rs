//! The fuzzing corpus through the fuzz target's own entry point, so that a regression shows without a fuzzer.

#[path = "../../fuzz/entry.rs"]
mod entry;

use crate::hostile_gguf::cases;
use crate::writer::every_type;
pub(crate) use entry::read_everything;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/gguf")
}

/// The corpus is committed, so what takes kilobytes stays out of it.
fn small_cases() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    cases().into_iter().map(|(name, bytes, _)| (name, bytes)).filter(|(_, bytes)| bytes.len() < 4096)
}

#[test]
fn every_corpus_file_is_read_or_refused_without_a_panic() {
    let mut files = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        if let Err(error) = read_everything(&bytes) {
            let text = error.to_string();
            assert!(text.len() < 600 && !text.contains('\n'), "{}: {text}", path.display());
        }
        files += 1;
    }
    assert!(files > small_cases().count(), "{files} files");
}

/// Writes the corpus anew from the cases of `hostile_gguf.rs`; files a fuzzer found stay as they are.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_corpus() {
    std::fs::write(folder().join("every_type.gguf"), every_type().bytes()).unwrap();
    for (name, bytes) in small_cases() {
        std::fs::write(folder().join(format!("{name}.gguf")), bytes).unwrap();
    }
}
