//! Where bytes come from: a file read with `pread`, or bytes in memory for tests and fuzzing.
//!
//! Files are never mapped: a file that is cut while a map is alive kills the process, a short read is an error.

use super::error::{LoadError, Result, reserve};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes that can be read at any offset.
pub trait Source: Send + Sync + core::fmt::Debug {
    /// The file's name, for messages.
    fn path(&self) -> &Path;

    /// Number of bytes when the source was opened.
    fn len(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `Truncated` when the source ends before, `Io` when reading fails.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Fails with `Truncated` unless `need` bytes lie at `at`.
pub(crate) fn expect_range(source: &dyn Source, what: &str, at: u64, need: u64) -> Result<()> {
    match at.checked_add(need) {
        Some(end) if end <= source.len() => Ok(()),
        _ => Err(LoadError::Truncated {
            path: source.path().into(),
            what: what.into(),
            at,
            need,
            len: source.len(),
        }),
    }
}

/// Reads `len` bytes at `at` into memory of their own; nothing is allocated before the range is known to exist.
pub(crate) fn read_vec(source: &dyn Source, what: &str, at: u64, len: u64) -> Result<Vec<u8>> {
    expect_range(source, what, at, len)?;
    let len = usize::try_from(len).map_err(|_| LoadError::memory(source.path(), what, usize::MAX))?;
    let mut bytes = reserve(source.path(), what, len)?;
    bytes.resize(len, 0);
    source.read_at(at, &mut bytes)?;
    Ok(bytes)
}

/// A regular file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    file: File,
    len: u64,
}

impl FileSource {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// `Io` when it cannot be opened or is not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
        // Asked before opening: opening a named pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(|e| LoadError::io(path, "open the file", e))?;
        if !metadata.is_file() {
            return Err(LoadError::Format {
                path: path.into(),
                seen: "not a regular file".into(),
                wanted: "a .gguf or .safetensors file, or a folder with config.json and safetensors".into(),
            });
        }
        let file = File::open(path).map_err(|e| LoadError::io(path, "open the file", e))?;
        let len = file.metadata().map_err(|e| LoadError::io(path, "ask for its length", e))?.len();
        Ok(Self { path: path.into(), file, len })
    }
}

impl Source for FileSource {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        expect_range(self, "a read", offset, buffer.len() as u64)?;
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|e| LoadError::io(&self.path, format!("read {} bytes at {offset}", buffer.len()), e))
    }
}

/// Bytes in memory under a made-up name.
#[derive(Clone, Debug)]
pub struct Bytes {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Bytes {
    /// Wraps bytes; `name` stands in messages where a path would.
    pub fn new(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        Self { path: name.into(), bytes }
    }
}

impl Source for Bytes {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        expect_range(self, "a read", offset, buffer.len() as u64)?;
        let start = offset as usize;
        buffer.copy_from_slice(&self.bytes[start..start + buffer.len()]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_beyond_the_end_are_refused_before_anything_is_allocated() {
        let source = Bytes::new("memory", vec![1, 2, 3]);
        assert_eq!(read_vec(&source, "all", 0, 3).unwrap(), [1, 2, 3]);
        assert_eq!(read_vec(&source, "none", 3, 0).unwrap(), [0u8; 0]);
        for (at, len) in [(0, 4), (4, 0), (u64::MAX, 2), (1, u64::MAX)] {
            assert!(
                matches!(read_vec(&source, "it", at, len), Err(LoadError::Truncated { .. })),
                "{at} {len}"
            );
        }
    }

    #[test]
    fn a_file_cut_after_opening_is_an_error_with_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut");
        std::fs::write(&path, [7; 100]).unwrap();
        let source = FileSource::open(&path).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
        let error = source.read_at(0, &mut [0; 50]).unwrap_err();
        assert!(matches!(error, LoadError::Io { .. }) && error.path() == path, "{error}");
        assert!(FileSource::open(dir.path()).is_err());
    }
}
