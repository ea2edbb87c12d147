//! Ctrl-C: the first one asks the work in hand to end after its current token, the second one ends the process.
//!
//! Work that cannot be asked (loading, waiting for a line) is ended by the first.

use crate::failure::{Failure, interrupted_code};
use crate::progress;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);
static LISTENING: AtomicBool = AtomicBool::new(false);

/// Takes Ctrl-C over from the system.
pub(crate) fn install() -> Result<(), Failure> {
    ctrlc::set_handler(|| {
        let again = ASKED.swap(true, Ordering::Relaxed);
        if again || !LISTENING.load(Ordering::Relaxed) {
            progress::restore_terminal();
            std::process::exit(interrupted_code().into());
        }
    })
    .map_err(|error| {
        Failure::Message(format!("cannot listen for Ctrl-C: {error}; run it in another terminal"))
    })
}

/// While it lives, the work promises to look at [`asked`] often.
pub(crate) struct Listening;

impl Listening {
    pub(crate) fn begin() -> Self {
        LISTENING.store(true, Ordering::Relaxed);
        Self
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENING.store(false, Ordering::Relaxed);
    }
}

/// Whether Ctrl-C was pressed.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// The failure that ends the process with 130, once Ctrl-C was pressed.
pub(crate) fn check() -> Result<(), Failure> {
    if asked() { Err(Failure::Interrupted) } else { Ok(()) }
}
