//! Ctrl-C, and on Unix SIGTERM and SIGHUP: the first asks the work in hand to end after its current token, the second
//! ends the process.
//!
//! Work that cannot be asked (loading, waiting for a line) is ended by the first.

use crate::failure::Failure;
use crate::progress;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// The number of SIGINT.
const INTERRUPT: u8 = 2;

/// The number of the latest signal, 0 before any.
static ASKED: AtomicU8 = AtomicU8::new(0);
static LISTENING: AtomicBool = AtomicBool::new(false);

/// Takes the signals over from the system.
pub(crate) fn install() -> Result<(), Failure> {
    listen().map_err(|error| {
        Failure::Message(format!("cannot listen for Ctrl-C: {error}; run it in another terminal"))
    })
}

#[cfg(unix)]
fn listen() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    let mut wanted = vec![SIGINT, SIGTERM];
    // `nohup` asks for this one to be ignored, and it stays so.
    if !is_ignored(SIGHUP) {
        wanted.push(SIGHUP);
    }
    let mut signals = Signals::new(wanted)?;
    let watch =
        move || signals.forever().for_each(|signal| received(u8::try_from(signal).unwrap_or(INTERRUPT)));
    std::thread::Builder::new().name("signals".into()).spawn(watch)?;
    Ok(())
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    let mut now = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action only the present one is written, and read only where the call succeeded.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), now.as_mut_ptr()) == 0
            && now.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

#[cfg(not(unix))]
fn listen() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| received(INTERRUPT))
}

fn received(signal: u8) {
    let again = ASKED.swap(signal, Ordering::Relaxed) != 0;
    if again || !LISTENING.load(Ordering::Relaxed) {
        progress::restore_terminal();
        std::process::exit(exit_code().into());
    }
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

/// Whether a signal came.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed) != 0
}

/// 128 and the number of the signal, as shells expect: 130 for Ctrl-C.
pub(crate) fn exit_code() -> u8 {
    match ASKED.load(Ordering::Relaxed) {
        0 => 128 + INTERRUPT,
        signal => 128 | signal,
    }
}

/// The failure that ends the process with [`exit_code`], once a signal came.
pub(crate) fn check() -> Result<(), Failure> {
    if asked() { Err(Failure::Interrupted) } else { Ok(()) }
}
