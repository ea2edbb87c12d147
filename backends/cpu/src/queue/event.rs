//! A point in a CPU stream.

use super::latch::Latch;
use super::stream::Shared;
use portolan_core::RawEvent;
use portolan_ops::{OpError, Result};
use std::any::Any;
use std::sync::Weak;
use std::time::Duration;

pub(crate) struct CpuEvent {
    /// The queue it was recorded on: a waiter without a thread of its own may have to work it off.
    owner: Weak<Shared>,
    latch: Latch,
}

impl CpuEvent {
    pub(super) fn new(owner: Weak<Shared>) -> Self {
        Self { owner, latch: Latch::new() }
    }

    pub(super) fn signal(&self) {
        self.latch.signal();
    }
}

impl RawEvent for CpuEvent {
    fn is_complete(&self) -> bool {
        self.latch.is_reached()
    }

    fn synchronize(&self, timeout: Duration) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        if let Some(owner) = self.owner.upgrade() {
            owner.drain_if_inline(|| self.is_complete());
        }
        match self.latch.wait(timeout) {
            true => Ok(()),
            false => Err(OpError::Timeout { what: "an event".into(), after: timeout }),
        }
    }

    fn elapsed_since(&self, start: &dyn RawEvent) -> Option<Duration> {
        let start = start.as_any().downcast_ref::<CpuEvent>()?;
        let (begin, end) = (start.latch.at()?, self.latch.at()?);
        Some(end.saturating_duration_since(begin))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
