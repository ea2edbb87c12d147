//! `--trace FILE`: what ran when, for a trace viewer.

use crate::args::TraceArgs;
use crate::failure::Failure;
use crate::progress;
use portolan::explain::{TraceLog, expect_writable, save_trace};
use portolan::{DeviceId, Registry};
use std::path::{Path, PathBuf};

/// The trace that was asked for, if any.
#[derive(Default)]
pub(crate) struct Tracing(Option<(TraceLog, PathBuf)>);

impl Tracing {
    /// Fails at once where the file could not be written in the end.
    pub(crate) fn begin(args: &TraceArgs) -> Result<Self, Failure> {
        let Some(path) = &args.trace else { return Ok(Self(None)) };
        expect_writable(path).map_err(|error| cannot_write(path, &error))?;
        Ok(Self(Some((TraceLog::new(), path.clone()))))
    }

    /// The registry with the backend of `device` traced.
    pub(crate) fn wrap(&self, registry: Registry, device: &str) -> Result<Registry, Failure> {
        let Some((log, _)) = &self.0 else { return Ok(registry) };
        let id: DeviceId = device.parse()?;
        Ok(registry.wrap(id.backend(), |backend| log.around(backend)))
    }

    /// Writes everything so far.
    pub(crate) fn save(&self) -> Result<(), Failure> {
        let Some((log, path)) = &self.0 else { return Ok(()) };
        save_trace(log, path).map_err(|error| cannot_write(path, &error))?;
        if log.lost() > 0 {
            let what = "the trace is full; the last operators are missing in it, trace a shorter run";
            progress::say(&format!("{}: {what}", path.display()));
        }
        Ok(())
    }
}

/// The failure of a file that an option asked for.
pub(crate) fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    let what = "choose another place, or make room";
    Failure::Message(format!("cannot write {}: {error}; {what}", path.display()))
}
