//! An in-order queue, and the one way to launch anything on it.

use crate::backend::RawStream;
use crate::buffer::Buffer;
use crate::device::{Device, DeviceInner, Submission};
use crate::event::Event;
use crate::graph::Capture;
use crate::launch::{Held, submit};
use crate::op::Op;
use crate::report::StreamReport;
use crate::sync::{Mutex, lock};
use crate::tensor::Tensor;
use core::fmt;
use portolan_ops::{Cost, Determinism, OpError, Result, TensorSpec};
use std::sync::Arc;
use std::time::Duration;

/// Whether operators without a native kernel may be composed from others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fallback {
    /// Composed on the same device, counted in the stream's report.
    #[default]
    Allow,
    /// An error.
    Deny,
}

/// How a stream behaves.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// What is promised of the bits of results.
    pub determinism: Determinism,
    /// Whether compositions are allowed.
    pub fallback: Fallback,
    /// At most so many threads work for this stream (CPU only; never changes bits). `None`: all.
    pub threads: Option<usize>,
    /// The longest any wait on this stream takes.
    pub timeout: Duration,
    /// Every `run` returns only when the operator has finished, so that a fault names it exactly.
    pub blocking: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            determinism: Determinism::default(),
            fallback: Fallback::default(),
            threads: None,
            timeout: Duration::from_secs(600),
            blocking: false,
        }
    }
}

pub(crate) struct StreamInner {
    id: u64,
    device: Arc<DeviceInner>,
    raw: Arc<dyn RawStream>,
    options: StreamOptions,
    pub(crate) capture: Mutex<Option<Capture>>,
    tensor_label: Arc<str>,
    scratch_label: Arc<str>,
}

impl StreamInner {
    pub(crate) fn new(
        id: u64,
        device: Arc<DeviceInner>,
        raw: Arc<dyn RawStream>,
        options: StreamOptions,
    ) -> Arc<Self> {
        let (tensor_label, scratch_label) = ("tensor".into(), "scratch".into());
        Arc::new(Self { id, device, raw, options, capture: Mutex::new(None), tensor_label, scratch_label })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }
    /// Tells it apart from streams of other devices, which have numbers of their own. Never 0.
    pub(crate) fn key(&self) -> usize {
        core::ptr::from_ref(self).addr()
    }
    pub(crate) fn device(&self) -> &Arc<DeviceInner> {
        &self.device
    }
    pub(crate) fn raw(&self) -> &dyn RawStream {
        self.raw.as_ref()
    }
    pub(crate) fn options(&self) -> &StreamOptions {
        &self.options
    }
    pub(crate) fn scratch_label(&self) -> &Arc<str> {
        &self.scratch_label
    }

    /// Marks the present end of the queue, under the submission lock.
    pub(crate) fn record_in(self: &Arc<Self>, submission: &Submission) -> Result<Event> {
        let seq = submission.slots.get(self.id).map_or(0, |slot| slot.seq);
        let horizon = submission.slots.horizon(self.id, seq);
        Ok(Event { raw: self.raw.record()?, stream: self.clone(), seq, horizon })
    }

    /// The work up to `seq` has finished: its health, and a wait less for whoever uses its results.
    pub(crate) fn finished_until(&self, seq: u64) -> Result<()> {
        let slots = &mut self.device.submission().slots;
        slots.note_completed(self.id, seq);
        slots.health(self.id, seq)
    }

    /// Blocks until everything enqueued so far has finished.
    pub(crate) fn synchronize(&self) -> Result<()> {
        let seq = self.device.submission().slots.get(self.id).map_or(0, |slot| slot.seq);
        self.raw.synchronize(self.options.timeout)?;
        self.finished_until(seq)
    }

    /// `Capture` while this stream is captured, or while this thread captures another one.
    pub(crate) fn refuse_in_capture(&self, what: &str) -> Result<()> {
        crate::graph::refuse_foreign_capture(self)?;
        match lock(&self.capture).is_some() {
            true => Err(OpError::Capture {
                what: format!("{what} is not allowed while stream {} is captured", self.id),
            }),
            false => Ok(()),
        }
    }
}

impl Drop for StreamInner {
    fn drop(&mut self) {
        // The last handle may be a buffer's, on any thread, so nothing may block here. The device forgets
        // the stream once its work has finished; until then its memory stays its own.
        self.device.retire(self.id);
    }
}

/// An in-order queue of a device; clones are the same queue.
#[derive(Clone)]
pub struct Stream(Arc<StreamInner>);

impl Stream {
    pub(crate) fn from_inner(inner: Arc<StreamInner>) -> Self {
        Stream(inner)
    }
    pub(crate) fn inner(&self) -> &Arc<StreamInner> {
        &self.0
    }

    /// The device.
    pub fn device(&self) -> Device {
        Device::from_inner(self.0.device.clone())
    }
    /// The number of this stream, as in error messages.
    pub fn id(&self) -> u64 {
        self.0.id
    }
    /// How it was made.
    pub fn options(&self) -> &StreamOptions {
        &self.0.options
    }

    /// Enqueues an operator, behind everything that touched its operands on any stream.
    ///
    /// During [`Stream::capture`] the operator is recorded instead.
    ///
    /// # Errors
    /// `Poisoned` when the stream, or one it depends on, has failed; `Device` for operands of another
    /// device; `Unsupported`; `OutOfMemory` for a kernel's scratch. Under [`StreamOptions::blocking`] also
    /// the operator's own fault.
    pub fn run(&self, op: impl Op) -> Result<()> {
        if let Some(capture) = lock(&self.0.capture).as_mut() {
            return capture.record(&self.0, Box::new(op));
        }
        crate::graph::refuse_foreign_capture(&self.0)?;
        {
            let held = Held::lock(&self.0, None);
            submit(&self.0, &held, &op, 0, op.kind())?;
        }
        self.after_submit()
    }

    pub(crate) fn after_submit(&self) -> Result<()> {
        self.0.raw.drain();
        if self.0.options.blocking {
            self.0.synchronize()?;
        }
        Ok(())
    }

    /// Uninitialised device memory for `spec` (which need not be contiguous).
    ///
    /// # Errors
    /// `OutOfMemory`, which names the largest holders.
    pub fn empty(&self, spec: &TensorSpec) -> Result<Tensor> {
        self.empty_labelled(spec, &self.0.tensor_label.clone())
    }

    /// [`Stream::empty`] under a label that out-of-memory reports show.
    pub fn empty_labelled(&self, spec: &TensorSpec, label: &Arc<str>) -> Result<Tensor> {
        let bytes = spec.span_bytes();
        crate::graph::refuse_foreign_capture(&self.0)?;
        let buffer = if let Some(capture) = lock(&self.0.capture).as_mut() {
            capture.allocate(&self.0, bytes, label)?
        } else {
            let submission = &mut *self.0.device.submission();
            let context = self.0.device.pool_context(self.0.options.timeout);
            let (block, returns) = submission.allocate(None, self.0.id, bytes, label, &context)?;
            Buffer::new(block, self.0.clone(), returns, label.clone())
        };
        Tensor::new(buffer, *spec)
    }

    /// Marks the present end of the queue.
    ///
    /// # Errors
    /// `Driver`, `Capture` during a capture. A fault is reported by whoever waits for the event.
    pub fn record(&self) -> Result<Event> {
        self.0.refuse_in_capture("record")?;
        let event = self.0.record_in(&self.0.device.submission())?;
        self.0.raw.drain();
        Ok(event)
    }

    /// Makes later work of this stream wait for `event`; does not block the host.
    ///
    /// # Errors
    /// `Device` for an event of another device, `Driver`, `Capture` during a capture. When work before the
    /// event has failed or fails later, this stream is poisoned, which the next `run` reports.
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.0.refuse_in_capture("wait")?;
        if !Arc::ptr_eq(&event.stream.device, &self.0.device) {
            let (lhs, rhs) = (self.0.device.info.id.clone(), event.stream.device.info.id.clone());
            return Err(OpError::Device { op: "wait".into(), lhs, rhs });
        }
        if event.stream.id == self.0.id {
            return Ok(());
        }
        {
            let slots = &mut self.0.device.submission().slots;
            // A wait has a number of its own: events recorded before it do not depend on it.
            let seq = slots.get_mut(self.0.id).map_or(0, |slot| {
                slot.seq += 1;
                slot.seq
            });
            if !slots.has_seen(self.0.id, event.point()) {
                self.0.raw.wait(&event.raw, seq)?;
            }
            slots.learn(self.0.id, seq, &event.horizon);
        }
        self.0.raw.drain();
        Ok(())
    }

    /// Blocks until everything enqueued so far has finished, at most the stream's timeout.
    ///
    /// # Errors
    /// `Poisoned` with the first cause when anything failed, `Timeout`, `Capture` during a capture.
    pub fn synchronize(&self) -> Result<()> {
        self.0.refuse_in_capture("synchronize")?;
        self.0.synchronize()
    }

    /// Launches, costs and compositions so far, and the state of the device's pool.
    pub fn report(&self) -> StreamReport {
        let submission = &mut *self.0.device.submission();
        let mut report = submission.slots.get(self.0.id).map(|slot| slot.report.clone()).unwrap_or_default();
        if let Ok(pool) = submission.pool.stats(&submission.slots) {
            report.pool_segments = pool.reservations;
            report.peak_bytes = pool.peak_bytes;
            report.bytes_in_use = pool.bytes_in_use;
        }
        report.operators.retain(|row| row.calls != 0 || row.composed != Cost::default());
        report
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {} of {}", self.0.id, self.0.device.info.id)
    }
}
