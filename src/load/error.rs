//! The one error type of loading: which file, which tensor or key, what was seen, what was wanted, what to do.
//!
//! Every reader below `load` returns it; programs match on variants or on [`LoadError::kind`], never on the text.

use portolan_ops::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The result of loading.
pub type Result<T, E = LoadError> = std::result::Result<T, E>;

/// Everything that can go wrong between a path and weights in host memory.
///
/// Text taken from a file is escaped and shortened before it enters a message.
#[non_exhaustive]
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// The operating system refused to open or read a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried: `open the file`, `read 64 bytes at 128`.
        action: String,
        /// What the operating system said.
        source: Arc<std::io::Error>,
    },
    /// The file is no format known here, or a version or byte order that is not read.
    #[error("{}: {seen}; wanted {wanted}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the file starts with.
        seen: String,
        /// What is read, and what to do.
        wanted: String,
    },
    /// The file ends before what it promises.
    #[error("{}: {what} needs {need} bytes at {at}, the file has {len}; it is cut short or damaged, fetch it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was to be read there.
        what: String,
        /// Offset in the file.
        at: u64,
        /// Bytes wanted from there.
        need: u64,
        /// Length of the file.
        len: u64,
    },
    /// The file contradicts itself or its format.
    #[error("{}: {what}; the file is damaged or not written to its format, fetch or convert it again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The contradiction.
        what: String,
    },
    /// A metadata or configuration entry has a type or value that cannot be used.
    #[error("{}: key `{key}` is {seen}, wanted {wanted}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// Type or value seen.
        seen: String,
        /// Type or value wanted.
        wanted: String,
    },
    /// A metadata or configuration entry is not there.
    #[error("{}: key `{key}` is missing, wanted {wanted}", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
        /// What it should hold.
        wanted: String,
    },
    /// A tensor cannot be used.
    #[error("{}: tensor `{name}` {what}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// A tensor is stored in a type that is not read.
    #[error("{}: tensor `{name}` is {seen}, which is not supported; convert the file to one of {supported}", path.display())]
    UnsupportedType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        seen: String,
        /// The types that are read.
        supported: &'static str,
    },
    /// No tensor of this name.
    #[error("{}: no tensor `{name}`; {hint}", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// Where to look.
        hint: String,
    },
    /// The host has not enough memory.
    #[error("{}: {what} needs {bytes} bytes, more than this host can give; use a smaller or quantized file", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// What the memory is for.
        what: String,
        /// Bytes asked for.
        bytes: u64,
    },
}

impl LoadError {
    pub(crate) fn io(path: &Path, action: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), action: action.into(), source: Arc::new(source) }
    }

    pub(crate) fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), what: what.into() }
    }

    pub(crate) fn key(
        path: &Path,
        key: impl Into<String>,
        seen: impl Into<String>,
        wanted: impl Into<String>,
    ) -> Self {
        Self::Key { path: path.into(), key: key.into(), seen: seen.into(), wanted: wanted.into() }
    }

    pub(crate) fn missing_key(path: &Path, key: impl Into<String>, wanted: impl Into<String>) -> Self {
        Self::MissingKey { path: path.into(), key: key.into(), wanted: wanted.into() }
    }

    pub(crate) fn tensor(path: &Path, name: &str, what: impl Into<String>) -> Self {
        Self::Tensor { path: path.into(), name: printable(name), what: what.into() }
    }

    pub(crate) fn memory(path: &Path, what: impl Into<String>, bytes: usize) -> Self {
        Self::Memory { path: path.into(), what: what.into(), bytes: bytes as u64 }
    }

    /// The file the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::Format { path, .. }
            | Self::Truncated { path, .. }
            | Self::Corrupt { path, .. }
            | Self::Key { path, .. }
            | Self::MissingKey { path, .. }
            | Self::Tensor { path, .. }
            | Self::UnsupportedType { path, .. }
            | Self::MissingTensor { path, .. }
            | Self::Memory { path, .. } => path,
        }
    }

    /// What a program can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Unavailable,
            Self::Memory { .. } => ErrorKind::ResourceExhausted,
            Self::UnsupportedType { .. } | Self::Format { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::InvalidArgument,
        }
    }
}

/// Text from a file as it may stand in a message: one line, no control characters, at most 80 characters.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::new();
    for (i, c) in text.chars().enumerate() {
        if i == 80 {
            out.push('…');
            break;
        }
        match c.is_control() {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// An empty vector with room for exactly `len` entries, or an error where the host has not that much.
pub(crate) fn reserve<T>(path: &Path, what: &str, len: usize) -> Result<Vec<T>> {
    let mut out = Vec::new();
    match out.try_reserve_exact(len) {
        Ok(()) => Ok(out),
        Err(_) => Err(LoadError::memory(path, what, len.saturating_mul(size_of::<T>()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_a_file_cannot_break_the_line_or_flood_it() {
        assert_eq!(printable("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(printable(&"x".repeat(1000)).chars().count(), 81);
    }

    #[test]
    fn a_reservation_that_cannot_be_met_is_an_error() {
        let error = reserve::<u64>(Path::new("f"), "a tensor", usize::MAX / 8).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted);
    }
}
