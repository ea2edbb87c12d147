//! How a subcommand ends when it does not end well, and the exit code of each way.

use crate::{interrupt, progress};
use std::io;
use std::process::ExitCode;

/// Why a subcommand stopped.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something is wrong; the message says what to do. Exit code 1.
    Message(String),
    /// The arguments contradict each other or the model. Exit code 2.
    Usage(String),
    /// Ctrl-C or another signal. Exit code 128 and its number, as shells expect.
    Interrupted,
    /// Whoever read our output has seen enough. Exit code 0.
    ReaderGone,
}

impl Failure {
    /// Prints the one line and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        let (code, message) = match self {
            Failure::Message(message) => (1, message),
            Failure::Usage(message) => (2, message),
            Failure::Interrupted => return ExitCode::from(interrupt::exit_code()),
            Failure::ReaderGone => return ExitCode::SUCCESS,
        };
        let one_line: Vec<&str> = message.split_whitespace().collect();
        progress::say(&format!("error: {}", one_line.join(" ")));
        ExitCode::from(code)
    }
}

impl From<portolan::Error> for Failure {
    fn from(error: portolan::Error) -> Self {
        match error {
            portolan::Error::Fetch(portolan::fetch::FetchError::Interrupted) => Failure::Interrupted,
            error => Failure::Message(error.to_string()),
        }
    }
}

impl From<portolan::fetch::FetchError> for Failure {
    fn from(error: portolan::fetch::FetchError) -> Self {
        portolan::Error::from(error).into()
    }
}

impl From<portolan::load::LoadError> for Failure {
    fn from(error: portolan::load::LoadError) -> Self {
        portolan::Error::from(error).into()
    }
}

impl From<portolan::OpError> for Failure {
    fn from(error: portolan::OpError) -> Self {
        portolan::Error::from(error).into()
    }
}

impl From<portolan::chat::ChatError> for Failure {
    fn from(error: portolan::chat::ChatError) -> Self {
        portolan::Error::from(error).into()
    }
}

impl From<io::Error> for Failure {
    /// Only writing to stdout and reading from stdin give this type bare.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::ReaderGone,
            _ => Failure::Message(format!(
                "cannot write or read the terminal: {error}; check where input and output are redirected"
            )),
        }
    }
}
