//! A point in a CPU stream.

use super::stream::Shared;
use portolan_core::RawEvent;
use portolan_core::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, Ordering},
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
    changed: Condvar,
}

impl CpuEvent {
    pub(super) fn new(owner: Weak<Shared>) -> Self {
        Self { owner, reached: AtomicBool::new(false), at: Mutex::new(None), changed: Condvar::new() }
    }

    pub(super) fn signal(&self) {
        *lock(&self.at) = Some(Instant::now());
        self.reached.store(true, Ordering::Release);
        self.changed.notify_all();
    }
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
        let deadline = Instant::now() + timeout;
        let mut at = lock(&self.at);
        while at.is_none() {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) else {
                return Err(OpError::Timeout { what: "an event".into(), after: timeout });
            };
            at = self.changed.wait_timeout(at, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        Ok(())
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
