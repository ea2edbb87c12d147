//! A stream of the driver, which stops at its first error.

use super::angles::Angles;
use super::event::CannEvent;
use super::graph::{CannGraph, Recording};
use super::progress::{Held, Progress, Stretch};
use crate::comm::{Engagement, Member, Watchers};
use crate::context::OnDevice;
use crate::driver::{Driver, Event, call, try_call};
use crate::error;
use crate::memory::{PIECE, PinnedBytes};
use crate::repeat::{Executors, Key, Planned};
use portolan_cann_sys::CallFailed;
use portolan_cann_sys::bindings::{
    ACL_EVENT_SYNC, ACL_EVENT_TIME_LINE, ACL_MEMCPY_DEVICE_TO_HOST, ACL_MEMCPY_HOST_TO_DEVICE,
    ACL_STOP_ON_FAILURE, ACL_STREAM_STATUS_COMPLETE, aclrtStream,
};
use portolan_core::sync::atomic::Ordering;
use portolan_core::sync::{Mutex, lock};
use portolan_core::{Fault, HostBuffer, Launch, Ordinal, RawEvent, RawStream, StreamOptions};
use portolan_ops::{OpError, Result};
use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How long a stream that says it is done may take to tell how it went.
const VERDICT: Duration = Duration::from_secs(10);

/// How often a wait for a collective looks whether its group has ended.
const GLANCE: Duration = Duration::from_millis(50);

/// A timeout as the driver takes it: from one millisecond on.
pub(crate) fn milliseconds(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// What a stream and its events share. The stream's handle is not here: events outlive it.
pub(crate) struct Shared {
    pub(crate) driver: Arc<Driver>,
    pub(crate) device: Ordinal,
    progress: Mutex<Progress>,
    /// The stream, while it lives.
    handle: Mutex<Option<Handle>>,
    /// Groups that end when the stream fails.
    watchers: Mutex<Watchers>,
}

impl Shared {
    /// Makes the device current.
    pub(crate) fn enter(&self) -> Result<OnDevice<'_>> {
        OnDevice::enter(&self.driver, self.device)
    }

    pub(crate) fn name(&self) -> String {
        format!("a stream of cann:{}", self.device)
    }

    pub(crate) fn has_passed(&self, position: u64) -> bool {
        lock(&self.progress).has_passed(position)
    }

    /// Everything up to a position is done, for better or worse: host memory gets its bytes, and is free.
    pub(crate) fn passed(&self, on: &OnDevice<'_>, position: u64, error: Option<OpError>) -> Result<()> {
        // Under the lock until every byte is there: whoever is told that a copy has passed may read at once.
        let mut progress = lock(&self.progress);
        let failed = error.is_some();
        let free = progress.pass(position, error);
        if failed {
            self.tell(&progress);
        }
        free.into_iter().try_for_each(|held| {
            let (pinned, destination) = match held {
                Held::Staged { pinned, destination } => (pinned, destination),
                Held::Engaged(engagement) => {
                    drop(engagement);
                    return Ok(());
                }
                Held::Graph(graph) => {
                    drop(graph);
                    return Ok(());
                }
                Held::Planned(planned) => {
                    drop(planned);
                    return Ok(());
                }
            };
            if let Some(Stretch { host, start, bytes }) = destination {
                // SAFETY: the copy into the pinned memory is done, it is as long as the stretch at least, which lies
                // within the buffer, and nobody reads that before its event, which is what has just been passed.
                unsafe {
                    host.address().add(start).copy_from_nonoverlapping(pinned.address, bytes);
                }
            }
            pinned.give_back(on)
        })
    }

    /// The driver cannot be asked any more: the stream has failed.
    pub(crate) fn broke(&self, error: OpError) {
        let mut progress = lock(&self.progress);
        let position = progress.enqueued();
        // The device may still use what was staged; it is not given back.
        core::mem::forget(progress.pass(position, Some(error)));
        self.tell(&progress);
    }

    /// Drops what is enqueued.
    fn abandon(&self, on: &OnDevice<'_>) {
        if let Some(handle) = *lock(&self.handle) {
            // Where it fails, the driver's own timeout ends the wait.
            let _ = call!(on.driver, on.device, aclrtStreamAbort(handle.0));
        }
    }

    /// Waits by `wait`, which takes milliseconds, for what is enqueued up to `position`. While a collective is under way
    /// its group may end: then the device would wait for what never comes, and the stream is given up.
    pub(crate) fn await_passing(
        &self,
        on: &OnDevice<'_>,
        position: u64,
        timeout: Duration,
        what: impl FnOnce() -> String,
        wait: impl Fn(i32) -> Result<core::result::Result<(), CallFailed>>,
    ) -> Result<()> {
        let begin = Instant::now();
        loop {
            let left = timeout.saturating_sub(begin.elapsed());
            let (engaged, _) = lock(&self.progress).engaged();
            let slice = if engaged { left.min(GLANCE) } else { left };
            match wait(milliseconds(slice))? {
                Ok(()) => return self.passed(on, position, None),
                Err(failed) if error::is_timeout(&failed) => {
                    let (_, ended) = lock(&self.progress).engaged();
                    if let Some(ended) = ended {
                        self.abandon(on);
                        return self.passed(on, position, Some(ended));
                    }
                    if !engaged || begin.elapsed() >= timeout {
                        return Err(error::timeout(what(), timeout));
                    }
                }
                // The wait is over; what it found is the stream's fault.
                Err(failed) => return self.passed(on, position, Some(error::driver(on.device, failed))),
            }
        }
    }

    /// Tells groups of the stream's fault.
    fn tell(&self, progress: &Progress) {
        let Some(fault) = progress.fault() else { return };
        for watcher in lock(&self.watchers).drain(..).filter_map(|watcher| watcher.upgrade()) {
            watcher.stream_failed(fault);
        }
    }
}

/// A stream.
pub(crate) struct CannStream {
    handle: Handle,
    pub(super) shared: Arc<Shared>,
    /// Where launches go instead while a graph is recorded.
    pub(super) recording: Mutex<Option<Recording>>,
    /// Tables of rotations, for the launches that come.
    pub(crate) angles: Mutex<Angles>,
    /// Executors of launches that may come again.
    pub(crate) executors: Mutex<Executors>,
}

#[derive(Clone, Copy)]
pub(super) struct Handle(pub(super) aclrtStream);

// SAFETY: a handle; the driver takes it on any thread whose context is the stream's.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl CannStream {
    pub(crate) fn new(driver: &Arc<Driver>, device: Ordinal, _options: &StreamOptions) -> Result<Self> {
        let on = OnDevice::enter(driver, device)?;
        let mut handle = core::ptr::null_mut();
        call!(on.driver, device, aclrtCreateStream(&mut handle))?;
        let shared = Arc::new(Shared {
            driver: driver.clone(),
            device,
            progress: Mutex::new(Progress::default()),
            watchers: Mutex::default(),
            handle: Mutex::new(Some(Handle(handle))),
        });
        driver.device(device)?.streams.fetch_add(1, Ordering::Relaxed);
        let stream = Self {
            handle: Handle(handle),
            shared,
            recording: Mutex::new(None),
            angles: Mutex::default(),
            executors: Mutex::default(),
        };
        // Left alone, a stream goes on computing with what a failed operator left behind.
        call!(on.driver, device, aclrtSetStreamFailureMode(handle, u64::from(ACL_STOP_ON_FAILURE)))?;
        Ok(stream)
    }

    /// The stream of a launch.
    pub(crate) fn of<'a>(launch: &'a Launch<'_>) -> Result<&'a Self> {
        launch
            .raw()
            .as_any()
            .downcast_ref()
            .ok_or_else(|| OpError::internal(launch.op_name(), "the stream is not one of the cann backend"))
    }

    /// Makes the stream's device current, which has to be one of this driver.
    pub(crate) fn enter(&self, driver: &Arc<Driver>) -> Result<OnDevice<'_>> {
        if !Arc::ptr_eq(driver, &self.shared.driver) {
            return Err(OpError::internal("launch", "the stream is of another driver"));
        }
        self.shared.enter()
    }

    /// Books what `enqueue` puts on the stream; the device has to be current.
    pub(crate) fn submit(
        &self,
        launch: &Launch<'_>,
        enqueue: impl FnOnce(aclrtStream) -> Result<()>,
    ) -> Result<()> {
        if let Some(recording) = lock(&self.recording).as_mut() {
            return recording.record(enqueue);
        }
        let mut progress = lock(&self.shared.progress);
        enqueue(self.handle.0)?;
        progress.enqueue(launch);
        Ok(())
    }

    /// Whether a graph is being recorded: what is enqueued then runs at every replay, with what it finds in memory.
    pub(crate) fn is_recorded(&self) -> bool {
        lock(&self.recording).is_some()
    }

    /// Keeps an executor for launches that may come.
    pub(crate) fn keep(&self, key: Key, planned: Planned) {
        let gone = lock(&self.executors).keep(key, planned);
        gone.into_iter().for_each(|planned| self.release(planned));
    }

    /// Lets go of an executor, once the latest work is done.
    pub(crate) fn release(&self, planned: Planned) {
        lock(&self.shared.progress).hold(Held::Planned(planned));
    }

    /// Holds a group until the latest work is done.
    pub(crate) fn engage(&self, engagement: Engagement) {
        lock(&self.shared.progress).hold(Held::Engaged(engagement));
    }

    /// Tells a group when this stream fails.
    pub(crate) fn watch(&self, watcher: Weak<Member>) {
        let mut watchers = lock(&self.shared.watchers);
        watchers.retain(|known| known.strong_count() > 0);
        if !watchers.iter().any(|known| known.ptr_eq(&watcher)) {
            watchers.push(watcher);
        }
    }

    /// Drops what is enqueued: it would wait for what never comes. The stream is not used again.
    pub(crate) fn abandon(&self) {
        if let Ok(on) = self.shared.enter() {
            self.shared.abandon(&on);
        }
    }

    /// Enqueues a run of a graph, which the stream holds until then.
    pub(super) fn run_graph(&self, launch: &Launch<'_>, graph: &Arc<CannGraph>) -> Result<()> {
        let on = self.shared.enter()?;
        let mut progress = lock(&self.shared.progress);
        call!(on.driver, on.device, aclmdlRIExecuteAsync(graph.handle(), self.handle.0))?;
        progress.enqueue(launch);
        progress.hold(Held::Graph(graph.clone()));
        Ok(())
    }

    /// Copies host memory, which may go at once, to the device.
    pub(crate) fn upload(&self, launch: &Launch<'_>, host: &HostBuffer, address: usize) -> Result<()> {
        let on = self.shared.enter()?;
        for start in (0..host.len()).step_by(PIECE) {
            let bytes = PIECE.min(host.len() - start);
            if !self.make_room(&on, launch, bytes)? {
                return Ok(());
            }
            let to = core::ptr::without_provenance_mut(address + start);
            let pinned = PinnedBytes::take(&on, bytes)?;
            // SAFETY: the pinned memory is ours alone and as long; `start + bytes` is within the buffer, and uploads are
            // read-only to whoever shares it.
            unsafe { pinned.address.copy_from_nonoverlapping(host.address().add(start), bytes) };
            let (from, kind) = (pinned.address.cast_const().cast(), ACL_MEMCPY_HOST_TO_DEVICE);
            if let Some(recording) = lock(&self.recording).as_mut() {
                // Each run copies it again.
                recording.record(|stream| {
                    call!(on.driver, on.device, aclrtMemcpyAsync(to, bytes, from, bytes, kind, stream))
                })?;
                recording.keep(pinned);
                continue;
            }
            let mut progress = lock(&self.shared.progress);
            let copied =
                call!(on.driver, on.device, aclrtMemcpyAsync(to, bytes, from, bytes, kind, self.handle.0));
            if let Err(error) = copied {
                pinned.give_back(&on)?;
                return Err(error);
            }
            progress.enqueue(launch);
            progress.hold(Held::Staged { pinned, destination: None });
        }
        Ok(())
    }

    /// Copies device memory to the host; the bytes are there when the stream is known to have passed.
    pub(crate) fn download(&self, launch: &Launch<'_>, address: usize, host: HostBuffer) -> Result<()> {
        if lock(&self.recording).is_some() {
            return Err(OpError::internal("download", "a graph cannot give bytes to the host"));
        }
        let on = self.shared.enter()?;
        for start in (0..host.len()).step_by(PIECE) {
            let bytes = PIECE.min(host.len() - start);
            if !self.make_room(&on, launch, bytes)? {
                return Ok(());
            }
            let from = core::ptr::without_provenance(address + start);
            let pinned = PinnedBytes::take(&on, bytes)?;
            let mut progress = lock(&self.shared.progress);
            let (to, kind) = (pinned.address.cast(), ACL_MEMCPY_DEVICE_TO_HOST);
            let copied =
                call!(on.driver, on.device, aclrtMemcpyAsync(to, bytes, from, bytes, kind, self.handle.0));
            if let Err(error) = copied {
                pinned.give_back(&on)?;
                return Err(error);
            }
            progress.enqueue(launch);
            let destination = Some(Stretch { host: host.clone(), start, bytes });
            progress.hold(Held::Staged { pinned, destination });
        }
        Ok(())
    }

    /// Waits for this stream's copies while too much pinned memory is in flight; whether the stream is well. It waits for
    /// no other stream: what those hold is at most one piece each beyond the bound.
    fn make_room(&self, on: &OnDevice<'_>, launch: &Launch<'_>, bytes: usize) -> Result<bool> {
        let (position, copies) = {
            let progress = lock(&self.shared.progress);
            (progress.enqueued(), progress.copies())
        };
        if !copies || lock(&self.recording).is_some() || !PinnedBytes::must_wait(on, bytes)? {
            return Ok(true);
        }
        self.wait_for_all(on, position, launch.options().timeout)?;
        // A fault is reported by whoever waits for the copy.
        Ok(lock(&self.shared.progress).fault().is_none())
    }

    /// An event's handle, used or new, and whether the driver can record it only once.
    fn event(&self, on: &OnDevice<'_>) -> Result<(Event, bool)> {
        if let Some(event) = lock(&on.driver.device(on.device)?.idle_events).pop() {
            return Ok((event, false));
        }
        let (mut handle, flags) = (core::ptr::null_mut(), ACL_EVENT_SYNC | ACL_EVENT_TIME_LINE);
        // Older drivers have only events that are recorded once.
        let single = on.driver.libraries.runtime.aclrtCreateEventExWithFlag().is_err();
        match single {
            false => call!(on.driver, on.device, aclrtCreateEventExWithFlag(&mut handle, flags))?,
            true => call!(on.driver, on.device, aclrtCreateEventWithFlag(&mut handle, flags))?,
        }
        Ok((Event(handle), single))
    }

    /// Waits in the driver for everything up to `position`, the present end.
    fn wait_for_all(&self, on: &OnDevice<'_>, position: u64, timeout: Duration) -> Result<()> {
        let wait = |ms| {
            let waited = try_call!(on.driver, aclrtSynchronizeStreamWithTimeout(self.handle.0, ms));
            waited.map_err(error::unavailable)
        };
        self.shared.await_passing(on, position, timeout, || self.shared.name(), wait)
    }

    /// Whether the driver says that nothing is left; learns of faults on the way.
    fn query(&self) -> Result<bool> {
        let position = lock(&self.shared.progress).enqueued();
        let on = self.shared.enter()?;
        let mut status = 0;
        call!(on.driver, on.device, aclrtStreamQuery(self.handle.0, &mut status))?;
        if status != ACL_STREAM_STATUS_COMPLETE {
            return Ok(false);
        }
        self.wait_for_all(&on, position, VERDICT)?;
        Ok(true)
    }
}

impl RawStream for CannStream {
    fn record(&self) -> Result<Arc<dyn RawEvent>> {
        let on = self.shared.enter()?;
        let (event, single) = self.event(&on)?;
        // Under the lock, so that nothing comes between the position and the recording.
        let mut progress = lock(&self.shared.progress);
        let recorded = call!(on.driver, on.device, aclrtRecordEvent(event.0, self.handle.0));
        let position = progress.enqueue_point();
        drop(progress);
        // Made before the error is passed on, so that the handle is not lost.
        let point = CannEvent::new(event, single, self.shared.clone(), position);
        recorded.map(|()| -> Arc<dyn RawEvent> { Arc::new(point) })
    }

    fn wait(&self, event: &Arc<dyn RawEvent>, _seq: u64) -> Result<()> {
        let Some(event) =
            event.as_any().downcast_ref::<CannEvent>().filter(|event| event.is_on(&self.shared))
        else {
            return Err(OpError::internal("wait", "the event is not one of this device"));
        };
        let on = self.shared.enter()?;
        let mut progress = lock(&self.shared.progress);
        call!(on.driver, on.device, aclrtStreamWaitEvent(self.handle.0, event.handle.0))?;
        progress.enqueue_point();
        Ok(())
    }

    fn is_idle(&self) -> bool {
        let position = lock(&self.shared.progress).enqueued();
        self.shared.has_passed(position)
            || self.query().unwrap_or_else(|error| {
                self.shared.broke(error);
                true
            })
    }

    fn synchronize(&self, timeout: Duration) -> Result<()> {
        let position = lock(&self.shared.progress).enqueued();
        self.wait_for_all(&self.shared.enter()?, position, timeout)
    }

    fn fault(&self) -> Option<Fault> {
        lock(&self.shared.progress).fault().cloned()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for CannStream {
    fn drop(&mut self) {
        let Ok(on) = self.shared.enter() else { return };
        if let Ok(device) = on.driver.device(on.device) {
            device.streams.fetch_sub(1, Ordering::Relaxed);
        }
        // Nobody is left to be told of what fails here. Work that hangs is not waited for, nor is what the driver could
        // not be asked about.
        let idle = self.is_idle() && self.fault().is_none();
        lock(&self.shared.handle).take();
        if idle {
            let _ = call!(on.driver, on.device, aclrtDestroyStream(self.handle.0));
        } else {
            let _ = call!(on.driver, on.device, aclrtDestroyStreamForce(self.handle.0));
        }
        drop(lock(&self.executors).drain());
        for address in lock(&self.angles).drain() {
            let _ = call!(on.driver, on.device, aclrtFree(core::ptr::without_provenance_mut(address)));
        }
    }
}
