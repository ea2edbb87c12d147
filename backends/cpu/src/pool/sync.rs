//! The synchronisation primitives of the pool, named in one place.
//!
//! Everything in this folder takes them from here, so that a model checker can be put underneath.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Locks, ignoring poison: what the pool guards is valid at every point where a panic can pass.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
