//! The fuzzing corpora through the fuzz targets' own entry points, so that a regression shows without a fuzzer.

#[path = "../../fuzz/config.rs"]
mod config;
#[path = "../../fuzz/entry.rs"]
mod entry;
#[path = "../../fuzz/safetensors.rs"]
mod safetensors;

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

/// Name and bytes of every file of a target's corpus.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder().with_file_name(target);
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    entries.map(|path| (name(&path), std::fs::read(&path).unwrap())).collect()
}

#[test]
fn every_safetensors_corpus_file_is_read_or_refused_without_a_panic() {
    let scratch = tempfile::tempdir().unwrap();
    let mut read = 0;
    for (name, bytes) in corpus("safetensors") {
        let outcome = match name.ends_with(".json") {
            true => safetensors::read_index(&bytes, scratch.path()),
            false => safetensors::read_file(&bytes),
        };
        match outcome {
            Ok(_) => read += 1,
            Err(error) => assert!(!error.to_string().contains('\n'), "{name}: {error}"),
        }
    }
    assert!(read >= 2, "{read} files are read");
}

#[test]
fn every_config_corpus_file_is_read_or_refused_without_a_panic() {
    let mut read = 0;
    for (name, bytes) in corpus("config") {
        match config::read_config(&bytes) {
            Some(Err(error)) => assert!(!error.to_string().contains('\n'), "{name}: {error}"),
            Some(Ok(_)) => read += 1,
            None => {}
        }
    }
    assert!(read >= 3, "{read} files are read");
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
