//! An open device: its backend, its pool and its streams behind one submission lock.

use crate::backend::{Backend, Ordinal, Support};
use crate::op::OpQuery;
use crate::order::Slots;
use crate::pool::{Pool, PoolContext, PoolStats};
use crate::stream::{Stream, StreamInner, StreamOptions};
use crate::sync::{Mutex, MutexGuard, lock};
use core::fmt;
use portolan_ops::{DeviceId, Result};
use std::sync::Arc;

/// What a device is.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its name in this library: `cpu:0`.
    pub id: DeviceId,
    /// The hardware's own name, and what distinguishes this path (instruction set, SIMULATED).
    pub name: String,
    /// Bytes it may use.
    pub memory_bytes: usize,
    /// Whether subnormal numbers are flushed to zero.
    pub flushes_denormals: bool,
}

/// What the submission lock protects.
pub(crate) struct Submission {
    pub(crate) slots: Slots,
    pub(crate) pool: Pool,
    /// Pools of dropped graphs that something may still use.
    orphans: Vec<Pool>,
    next_stream: u64,
}

impl Submission {
    /// Takes over a graph's pool; it goes back to the backend once no stream and no buffer uses it.
    pub(crate) fn adopt(&mut self, pool: Pool) {
        self.orphans.push(pool);
    }

    fn bury_orphans(&mut self, backend: &dyn Backend, ordinal: Ordinal) {
        let idle = self.slots.iter().all(|slot| slot.raw.is_idle());
        let slots = &self.slots;
        self.orphans.retain_mut(|pool| {
            let unused = idle && pool.stats(slots).is_ok_and(|stats| stats.bytes_in_use == 0);
            if unused {
                pool.close(backend, ordinal);
            }
            !unused
        });
    }
}

pub(crate) struct DeviceInner {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) ordinal: Ordinal,
    pub(crate) info: DeviceInfo,
    submission: Mutex<Submission>,
}

impl DeviceInner {
    pub(crate) fn new(backend: Arc<dyn Backend>, ordinal: Ordinal, info: DeviceInfo) -> Arc<Self> {
        let pool = Pool::new(backend.traits(ordinal));
        let submission =
            Mutex::new(Submission { slots: Slots::default(), pool, orphans: Vec::new(), next_stream: 1 });
        Arc::new(Self { backend, ordinal, info, submission })
    }

    pub(crate) fn submission(&self) -> MutexGuard<'_, Submission> {
        lock(&self.submission)
    }

    pub(crate) fn pool_context(&self, timeout: std::time::Duration) -> PoolContext<'_> {
        PoolContext { backend: self.backend.as_ref(), ordinal: self.ordinal, device: &self.info.id, timeout }
    }
}

impl Drop for DeviceInner {
    fn drop(&mut self) {
        // Streams and buffers hold the device, so none is left.
        let submission = &mut *lock(&self.submission);
        for pool in submission.orphans.iter_mut().chain([&mut submission.pool]) {
            pool.close(self.backend.as_ref(), self.ordinal);
        }
    }
}

/// An open device; clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<DeviceInner>);

impl Device {
    pub(crate) fn from_inner(inner: Arc<DeviceInner>) -> Self {
        Device(inner)
    }

    /// Its name: `cpu:0`.
    pub fn id(&self) -> DeviceId {
        self.0.info.id.clone()
    }

    /// What it is.
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Its backend, the outermost one where backends are wrapped.
    pub fn backend(&self) -> &dyn Backend {
        self.0.backend.as_ref()
    }

    /// Its number within the backend.
    pub fn ordinal(&self) -> Ordinal {
        self.0.ordinal
    }

    /// A new stream.
    ///
    /// # Errors
    /// `Driver` when the driver refuses, `Unsupported` for options the device lacks.
    pub fn stream(&self, options: StreamOptions) -> Result<Stream> {
        let raw = self.0.backend.stream_create(self.0.ordinal, &options)?;
        let mut submission = self.0.submission();
        submission.bury_orphans(self.0.backend.as_ref(), self.0.ordinal);
        let id = submission.next_stream;
        submission.next_stream += 1;
        submission.slots.add(id, raw.clone());
        drop(submission);
        Ok(Stream::from_inner(StreamInner::new(id, self.0.clone(), raw, options)))
    }

    /// What running an operator would do.
    pub fn support(&self, query: &OpQuery<'_>) -> Support {
        self.0.backend.support(self.0.ordinal, query)
    }

    /// How much memory the pool holds.
    ///
    /// # Errors
    /// Those of the driver's event calls.
    pub fn memory(&self) -> Result<PoolStats> {
        let submission = &mut *self.0.submission();
        submission.bury_orphans(self.0.backend.as_ref(), self.0.ordinal);
        submission.pool.stats(&submission.slots)
    }

    /// Whether both handles are the same open device. Names do not decide: two backends may share one.
    pub fn same(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0.info.id, self.0.info.name)
    }
}
