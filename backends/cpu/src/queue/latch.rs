//! What happens once: a moment that threads wait for, and the first fault of a queue.

use portolan_core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use portolan_core::sync::{Condvar, Mutex, deadline, lock, wait_timeout};
use std::time::{Duration, Instant};

/// A moment in time, once it has been reached.
pub(crate) struct Latch {
    reached: AtomicBool,
    at: Mutex<Option<Instant>>,
    /// Threads that wait for `changed`: waking nobody costs a system call all the same.
    waiters: AtomicUsize,
    changed: Condvar,
}

impl Latch {
    pub(crate) fn new() -> Self {
        Self {
            reached: AtomicBool::new(false),
            at: Mutex::new(None),
            waiters: AtomicUsize::new(0),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn signal(&self) {
        *lock(&self.at) = Some(Instant::now());
        self.reached.store(true, Ordering::Release);
        // Waiters count themselves under the lock that was just held: none can be missed.
        if self.waiters.load(Ordering::Acquire) != 0 {
            self.changed.notify_all();
        }
    }

    pub(crate) fn is_reached(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    /// Blocks until the moment is reached; false when `timeout` passed first.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        let end = deadline(timeout);
        let mut at = lock(&self.at);
        self.waiters.fetch_add(1, Ordering::AcqRel);
        while at.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            at = wait_timeout(&self.changed, at, left);
        }
        self.waiters.fetch_sub(1, Ordering::AcqRel);
        at.is_some()
    }

    pub(crate) fn at(&self) -> Option<Instant> {
        *lock(&self.at)
    }
}

/// The first of several faults; cheap to ask while there is none.
pub(crate) struct FirstFault<F> {
    present: AtomicBool,
    first: Mutex<Option<F>>,
}

impl<F: Clone> FirstFault<F> {
    pub(crate) fn new() -> Self {
        Self { present: AtomicBool::new(false), first: Mutex::new(None) }
    }

    pub(crate) fn set(&self, fault: F) {
        lock(&self.first).get_or_insert(fault);
        self.present.store(true, Ordering::Release);
    }

    pub(crate) fn is_present(&self) -> bool {
        self.present.load(Ordering::Acquire)
    }

    pub(crate) fn get(&self) -> Option<F> {
        if !self.is_present() {
            return None;
        }
        lock(&self.first).clone()
    }
}
