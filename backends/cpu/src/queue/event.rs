//! A point in a CPU stream.

use super::stream::Shared;
use portolan_core::RawEvent;
use portolan_core::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
    lock,
};
use portolan_ops::{OpError, Result};
use std::any::Any;
use std::sync::Weak;
use std::time::{Duration, Instant};

pub(crate) struct CpuEvent {
    /// The queue it was recorded on: a waiter without a thread of its own may have to work it off.
    pub(super) owner: Weak<Shared>,
    reached: AtomicBool,
    at: Mutex<Option<Instant>>,
    /// Threads that wait for `changed`: waking nobody costs a system call all the same.
    waiters: AtomicUsize,
    changed: Condvar,
}

impl CpuEvent {
    pub(super) fn new(owner: Weak<Shared>) -> Self {
        Self {
            owner,
            reached: AtomicBool::new(false),
            at: Mutex::new(None),
            waiters: AtomicUsize::new(0),
            changed: Condvar::new(),
        }
    }

    pub(super) fn signal(&self) {
        *lock(&self.at) = Some(Instant::now());
        self.reached.store(true, Ordering::Release);
        // Waiters count themselves under the lock that was just held: none can be missed.
        if self.waiters.load(Ordering::Acquire) != 0 {
            self.changed.notify_all();
        }
    }
}

/// The moment `timeout` from now; one that the clock cannot express is far away.
pub(super) fn deadline(timeout: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    let now = Instant::now();
    now.checked_add(timeout).or_else(|| now.checked_add(CENTURY)).unwrap_or(now)
}

impl RawEvent for CpuEvent {
    fn is_complete(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }

    fn synchronize(&self, timeout: Duration) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        if let Some(owner) = self.owner.upgrade() {
            owner.drain_if_inline();
        }
        let end = deadline(timeout);
        let mut at = lock(&self.at);
        self.waiters.fetch_add(1, Ordering::AcqRel);
        while at.is_none() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            at = self.changed.wait_timeout(at, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        self.waiters.fetch_sub(1, Ordering::AcqRel);
        match at.is_some() {
            true => Ok(()),
            false => Err(OpError::Timeout { what: "an event".into(), after: timeout }),
        }
    }

    fn elapsed_since(&self, start: &dyn RawEvent) -> Option<Duration> {
        let start = start.as_any().downcast_ref::<CpuEvent>()?;
        let begin = (*lock(&start.at))?;
        let end = (*lock(&self.at))?;
        Some(end.saturating_duration_since(begin))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
