//! Graphs of the driver's own: recorded once, run as one piece of work.
//!
//! A recording has a driver's stream of its own, and launches go there instead of to the stream they are made on. So
//! nothing that the library does to the latter meanwhile (it may ask how far it has come, or record an event) is taken
//! for a part of the graph, which would end the capture.

use super::stream::{CannStream, Handle, Shared};
use crate::context::OnDevice;
use crate::driver::{call, try_call};
use crate::error;
use crate::memory::PinnedBytes;
use portolan_cann_sys::bindings::{ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL, aclmdlRI, aclrtStream};
use portolan_core::sync::atomic::Ordering;
use portolan_core::sync::lock;
use portolan_core::{Launch, RawGraph};
use portolan_ops::{OpError, Result};
use std::sync::{Arc, Weak};

/// Streams that a capture takes: the one it is recorded on, and the graph's. The first is given back at its end.
const STREAMS: usize = 2;

/// A recording under way.
pub(crate) struct Recording {
    stream: Handle,
    tasks: usize,
    /// What copies of the graph read.
    pinned: Vec<PinnedBytes>,
}

impl Recording {
    /// Adds a task.
    pub(super) fn record(&mut self, enqueue: impl FnOnce(aclrtStream) -> Result<()>) -> Result<()> {
        enqueue(self.stream.0)?;
        self.tasks += 1;
        Ok(())
    }

    /// Holds host memory that the latest task reads.
    pub(super) fn keep(&mut self, pinned: PinnedBytes) {
        self.pinned.push(pinned);
    }
}

/// A driver's graph.
pub(crate) struct CannGraph {
    me: Weak<CannGraph>,
    handle: GraphHandle,
    shared: Arc<Shared>,
    pinned: Vec<PinnedBytes>,
}

struct GraphHandle(aclmdlRI);

// SAFETY: a handle; the driver takes it on any thread whose context is the graph's.
unsafe impl Send for GraphHandle {}
// SAFETY: as above.
unsafe impl Sync for GraphHandle {}

impl CannGraph {
    pub(super) fn handle(&self) -> aclmdlRI {
        self.handle.0
    }
}

impl CannStream {
    /// Records what `record` launches; `None` where the driver knows no graphs.
    pub(super) fn record_graph(
        &self,
        operators: usize,
        record: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Arc<CannGraph>>> {
        let on = self.shared.enter()?;
        let runtime = &on.driver.libraries.runtime;
        let begin = runtime.aclmdlRICaptureBegin().is_ok() && runtime.aclmdlRICaptureEnd().is_ok();
        if !(begin && runtime.aclmdlRIExecuteAsync().is_ok() && runtime.aclmdlRIDestroy().is_ok()) {
            return Ok(None);
        }
        let (limit, streams) = (on.driver.product().stream_limit(), &on.driver.device(on.device)?.streams);
        let used = streams.load(Ordering::Relaxed);
        if used + STREAMS > limit {
            let what = format!(
                "a graph of {operators} operators wants {STREAMS} streams of cann:{}, which has {limit}, and {used} are \
                 in use here; drop streams or graphs",
                on.device
            );
            return Err(OpError::Capture { what });
        }
        let stream = RecordingStream::new(&on)?;
        let mode = ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL;
        call!(on.driver, on.device, aclmdlRICaptureBegin(stream.handle.0, mode))
            .map_err(|error| refused(error, operators, 0))?;
        *lock(&self.recording) = Some(Recording { stream: stream.handle, tasks: 0, pinned: Vec::new() });
        let recorded = Ending { stream: self }.run(record);
        let Some(Recording { tasks, pinned, .. }) = lock(&self.recording).take() else {
            return Err(OpError::internal("capture", "the recording vanished"));
        };
        // What was launched may have made another device current.
        let on = self.shared.enter()?;
        let mut handle = core::ptr::null_mut();
        let ended = call!(on.driver, on.device, aclmdlRICaptureEnd(stream.handle.0, &mut handle));
        // Owned first, so that nothing is lost where one of both failed.
        let graph = Arc::new_cyclic(|me| CannGraph {
            me: me.clone(),
            handle: GraphHandle(handle),
            shared: self.shared.clone(),
            pinned,
        });
        if !handle.is_null() {
            streams.fetch_add(1, Ordering::Relaxed);
        }
        recorded.map_err(|error| refused(error, operators, tasks))?;
        ended.map_err(|error| refused(error, operators, tasks))?;
        Ok(Some(graph))
    }
}

/// A lack of the driver's, as a refusal of the capture that says how far it came.
fn refused(error: OpError, operators: usize, tasks: usize) -> OpError {
    if !error::is_out_of_resources(&error) {
        return error;
    }
    let what = format!(
        "the driver has no room for a graph of {operators} operators, of which it took {tasks} tasks and refused the next: \
         {error}; capture fewer operators in one graph, or drop graphs and streams"
    );
    OpError::Capture { what }
}

/// Ends the redirection of launches, also when one panics.
struct Ending<'a> {
    stream: &'a CannStream,
}

impl Ending<'_> {
    fn run(self, record: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let recorded = record();
        core::mem::forget(self);
        recorded
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        lock(&self.stream.recording).take();
    }
}

/// A driver's stream for one recording.
struct RecordingStream<'a> {
    on: &'a OnDevice<'a>,
    handle: Handle,
}

impl<'a> RecordingStream<'a> {
    fn new(on: &'a OnDevice<'a>) -> Result<Self> {
        let mut handle = core::ptr::null_mut();
        call!(on.driver, on.device, aclrtCreateStream(&mut handle))?;
        Ok(Self { on, handle: Handle(handle) })
    }
}

impl Drop for RecordingStream<'_> {
    fn drop(&mut self) {
        // Nothing ever ran on it, and nobody is left to be told.
        if let Ok(on) = OnDevice::enter(self.on.driver, self.on.device) {
            let _ = call!(on.driver, on.device, aclrtDestroyStream(self.handle.0));
        }
    }
}

impl RawGraph for CannGraph {
    fn replay(&self, launch: &Launch<'_>) -> Result<()> {
        let stream = CannStream::of(launch)?;
        match self.me.upgrade() {
            Some(graph) => stream.run_graph(launch, &graph),
            None => Err(OpError::internal("replay", "the graph is being dropped")),
        }
    }
}

impl Drop for CannGraph {
    /// No run of it is under way: streams hold the graphs that they run.
    fn drop(&mut self) {
        let Ok(on) = self.shared.enter() else { return };
        // Nobody is left to be told of what fails here.
        if !self.handle.0.is_null() {
            let _ = try_call!(on.driver, aclmdlRIDestroy(self.handle.0));
            if let Ok(device) = on.driver.device(on.device) {
                device.streams.fetch_sub(1, Ordering::Relaxed);
            }
        }
        for pinned in self.pinned.drain(..) {
            let _ = pinned.give_back(&on);
        }
    }
}
