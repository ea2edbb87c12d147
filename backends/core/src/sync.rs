//! Every lock, atomic, condition variable and thread of the contract and its CPU backend comes from here, and the
//! cells whose protocol a model checks: `std`, or `loom` when models are checked.
//!
//! `Arc` is `std`'s under both: its counting is not ours to prove, and loom's cannot hold a `dyn` value.
//! Locks are taken with [`lock`], which goes on after a panic elsewhere: a panic in one thread must not
//! turn into a second one here.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

#[cfg(not(loom))]
pub use std::{
    hint,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread, thread_local,
};

#[cfg(loom)]
pub use loom::{
    cell::UnsafeCell,
    hint,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread, thread_local,
};

/// Locks `mutex`, whether or not a thread panicked while it held the lock.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for `condition`, whether or not a thread panicked while it held the lock.
pub fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// As [`wait`], for `timeout` at most; a model never times out.
pub fn wait_timeout<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
) -> MutexGuard<'a, T> {
    condition.wait_timeout(guard, timeout).unwrap_or_else(PoisonError::into_inner).0
}

/// The moment `timeout` from now; one that the clock cannot express is a century away.
pub fn deadline(timeout: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    let now = Instant::now();
    now.checked_add(timeout).or_else(|| now.checked_add(CENTURY)).unwrap_or(now)
}

/// Stands between a `SeqCst` write and a `SeqCst` read of another location by the same thread.
///
/// Such accesses are ordered by the language, so this compiles to nothing; loom orders sequentially consistent
/// fences only, and is told by one.
#[inline(always)]
pub fn write_before_read() {
    #[cfg(loom)]
    atomic::fence(atomic::Ordering::SeqCst);
}

/// How long a thread looks for work before it parks. Over at once in a model, where spinning teaches nothing.
pub struct Patience {
    #[cfg(not(loom))]
    start: std::time::Instant,
    #[cfg(not(loom))]
    length: Duration,
}

#[cfg(not(loom))]
impl Patience {
    /// Lasts for `length` from now.
    pub fn new(length: Duration) -> Self {
        Self { start: std::time::Instant::now(), length }
    }

    /// Whether it is time to park.
    pub fn is_over(&self) -> bool {
        self.start.elapsed() > self.length
    }
}

#[cfg(loom)]
impl Patience {
    /// None.
    pub fn new(_: Duration) -> Self {
        Self {}
    }

    /// Always.
    pub fn is_over(&self) -> bool {
        true
    }
}

/// A cell whose users keep a protocol of their own; a model checks that they do. The interface is loom's.
#[cfg(not(loom))]
#[derive(Debug)]
pub struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    /// A cell that holds `value`.
    pub const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    /// Calls `read` with the address; nobody may write meanwhile.
    #[inline(always)]
    pub fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// Calls `write` with the address; nobody else may read or write meanwhile.
    #[inline(always)]
    pub fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}
