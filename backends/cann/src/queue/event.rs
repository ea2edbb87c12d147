//! A point in a stream.

use super::stream::Shared;
use crate::context::OnDevice;
use crate::driver::{Event, call, try_call};
use crate::error;
use portolan_cann_sys::bindings::ACL_EVENT_RECORDED_STATUS_COMPLETE;
use portolan_core::RawEvent;
use portolan_core::sync::lock;
use portolan_ops::Result;
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// A driver's event, recorded once in its life here; the handle is used again afterwards.
pub(crate) struct CannEvent {
    pub(crate) handle: Event,
    shared: Arc<Shared>,
    /// Of the stream's work, what is before it.
    position: u64,
    /// The driver cannot record it again: destroyed rather than kept.
    single: bool,
}

impl CannEvent {
    pub(crate) fn new(handle: Event, single: bool, shared: Arc<Shared>, position: u64) -> Self {
        Self { handle, shared, position, single }
    }

    /// Whether both lie on one device.
    pub(crate) fn is_on(&self, shared: &Shared) -> bool {
        self.shared.device == shared.device && Arc::ptr_eq(&self.shared.driver, &shared.driver)
    }

    /// Asks the driver; learns of faults on the way.
    fn query(&self) -> Result<bool> {
        let on = self.shared.enter()?;
        let mut status = 0;
        call!(on.driver, on.device, aclrtQueryEventStatus(self.handle.0, &mut status))?;
        if status != ACL_EVENT_RECORDED_STATUS_COMPLETE {
            return Ok(false);
        }
        // Reached, whatever became of the work before: waiting for it is what tells.
        self.wait(&on, Duration::from_secs(1))?;
        Ok(true)
    }

    /// Waits in the driver.
    fn wait(&self, on: &OnDevice<'_>, timeout: Duration) -> Result<()> {
        let wait = |ms| {
            let waited = try_call!(on.driver, aclrtSynchronizeEventWithTimeout(self.handle.0, ms));
            waited.map_err(error::unavailable)
        };
        let what = || format!("an event of {}", self.shared.name());
        self.shared.await_passing(on, self.position, timeout, what, wait)
    }
}

impl RawEvent for CannEvent {
    fn is_complete(&self) -> bool {
        self.shared.has_passed(self.position)
            || self.query().unwrap_or_else(|error| {
                self.shared.broke(error);
                true
            })
    }

    fn synchronize(&self, timeout: Duration) -> Result<()> {
        if self.shared.has_passed(self.position) {
            return Ok(());
        }
        self.wait(&self.shared.enter()?, timeout)
    }

    fn elapsed_since(&self, start: &dyn RawEvent) -> Option<Duration> {
        let start = start.as_any().downcast_ref::<CannEvent>()?;
        // Passing is what the host knows, the time is what the driver wrote: both must have happened.
        if !(self.is_complete() && start.is_complete()) {
            return None;
        }
        let on = self.shared.enter().ok()?;
        let mut ms = 0f32;
        call!(on.driver, on.device, aclrtEventElapsedTime(&mut ms, start.handle.0, self.handle.0)).ok()?;
        Some(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1000.0))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for CannEvent {
    fn drop(&mut self) {
        // A stream that waits for it was told so when it was asked to: the next recording is another point.
        if !self.single
            && let Ok(device) = self.shared.driver.device(self.shared.device)
        {
            lock(&device.idle_events).push(self.handle);
            return;
        }
        if let Ok(on) = self.shared.enter() {
            // Nobody is left to be told.
            let _ = call!(on.driver, on.device, aclrtDestroyEvent(self.handle.0));
        }
    }
}
