//! Files that are whole or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Writes a file by way of a temporary one beside it: whoever looks finds the old contents or all of the new ones. What
/// is no regular file (a pipe, `/dev/stdout`) is written to as it is.
///
/// # Errors
/// Those of the system, among them a full disk; the old file is then as it was, and nothing else is left.
pub fn save(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    if is_special(path) {
        let mut out = BufWriter::new(OpenOptions::new().write(true).open(path)?);
        return write(&mut out).and_then(|()| out.flush());
    }
    let part = Part::create(path)?;
    let mut out = BufWriter::new(&part.file);
    write(&mut out)?;
    out.flush()?;
    drop(out);
    part.publish()
}

/// Fails where [`save`] would, as far as that can be told before there is anything to write.
///
/// # Errors
/// Those of the system: a folder that is missing or may not be written to.
pub fn expect_writable(path: &Path) -> io::Result<()> {
    if is_special(path) {
        return OpenOptions::new().write(true).open(path).map(drop);
    }
    Part::create(path).map(drop)
}

fn is_special(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

/// The temporary file; gone when it was not published.
struct Part {
    file: File,
    part: PathBuf,
    target: PathBuf,
    published: bool,
}

impl Part {
    fn create(path: &Path) -> io::Result<Self> {
        // Through a symbolic link, to replace what it names and not the link.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.into());
        let Some(name) = target.file_name() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "this names no file"));
        };
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.part", std::process::id()));
        let part = target.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&part)?;
        Ok(Self { file, part, target, published: false })
    }

    fn publish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.part, &self.target)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.part);
        }
    }
}
