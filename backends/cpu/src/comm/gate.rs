//! A gate before memory that other threads read. Its owner closes it and waits until nobody is inside, however the
//! operator ended, before the memory may be used for anything else.

use portolan_core::sync::atomic::{AtomicUsize, Ordering};
use portolan_core::sync::{hint, thread};

/// Set while the gate is closed; the rest counts who is inside, or has just found it closed.
const CLOSED: usize = 1 << (usize::BITS - 1);

pub(crate) struct Gate(AtomicUsize);

impl Gate {
    /// A closed gate.
    pub(crate) fn new() -> Self {
        Self(AtomicUsize::new(CLOSED))
    }

    /// Lets readers in; whoever posts the memory's address afterwards publishes what is in it.
    pub(crate) fn open(&self) {
        self.0.fetch_and(!CLOSED, Ordering::Release);
    }

    /// Calls `read` unless the gate is closed. It must not wait for anything.
    pub(crate) fn pass<R>(&self, read: impl FnOnce() -> R) -> Option<R> {
        let inside = Inside(self);
        match self.0.fetch_add(1, Ordering::Acquire) & CLOSED {
            0 => Some(read()),
            _ => {
                drop(inside);
                None
            }
        }
    }

    /// Lets nobody in any more, and returns when nobody is inside: within the time of one read.
    pub(crate) fn close(&self) {
        let mut state = self.0.fetch_or(CLOSED, Ordering::Acquire);
        while state & !CLOSED != 0 {
            hint::spin_loop();
            thread::yield_now();
            state = self.0.load(Ordering::Acquire);
        }
    }
}

/// Leaves the gate also when a read panics.
struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}
