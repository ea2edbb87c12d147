//! An open device: its backend, its pool and its streams behind one submission lock.

use crate::backend::{Backend, Ordinal, RawEvent, RawStream, Support};
use crate::op::OpQuery;
use crate::order::Slots;
use crate::pool::{Block, Pool, PoolContext, PoolStats, Returned};
use crate::returns::ReturnList;
use crate::stream::{Stream, StreamInner, StreamOptions};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, lock, thread};
use core::fmt;
use core::mem::ManuallyDrop;
use portolan_ops::{DeviceId, OpError, Result};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

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
    /// Whether its memory holds what is written to it. A device without data only counts shapes and costs:
    /// nothing can be downloaded from it, and loading a model onto it reads no weights.
    pub keeps_data: bool,
}

/// What the submission lock protects.
pub(crate) struct Submission {
    pub(crate) slots: Slots,
    pub(crate) pool: Pool,
    /// Pools of dropped graphs that something may still use.
    orphans: Vec<Orphan>,
    /// Streams without handles whose work may not have finished.
    retired: Vec<u64>,
    next_stream: u64,
}

/// The pool of a dropped graph. Once no buffer is left nothing new can use it, and once the streams have
/// passed that moment nothing does.
struct Orphan {
    pool: Pool,
    events: Option<Vec<Arc<dyn RawEvent>>>,
}

impl Submission {
    /// A block of the device's pool, or of a graph's, and where it goes back to.
    pub(crate) fn allocate(
        &mut self,
        mut private: Option<&mut Pool>,
        stream: u64,
        bytes: usize,
        label: &Arc<str>,
        cx: &PoolContext<'_>,
    ) -> Result<(Block, Arc<ReturnList<Returned>>)> {
        let graph = private.is_some();
        let pool = private.as_deref_mut().unwrap_or(&mut self.pool);
        let first = pool.allocate(stream, bytes, label, &mut self.slots, cx);
        let short = matches!(first, Err(OpError::OutOfMemory { .. }));
        if !short || (!graph && self.orphans.is_empty()) {
            return Ok((first?, pool.returns()));
        }
        // What other pools hold without need comes back first.
        if !self.orphans.is_empty() {
            for slot in self.slots.iter().filter(|slot| slot.raw.fault().is_none()) {
                slot.raw.synchronize(cx.timeout)?;
            }
            self.bury_orphans(cx.backend, cx.ordinal);
        }
        if graph {
            self.pool.squeeze(&self.slots, cx)?;
        }
        let pool = private.unwrap_or(&mut self.pool);
        Ok((pool.allocate(stream, bytes, label, &mut self.slots, cx)?, pool.returns()))
    }

    /// Takes over a graph's pool; it goes back to the backend once no stream and no buffer uses it.
    pub(crate) fn adopt(&mut self, pool: Pool, backend: &dyn Backend, ordinal: Ordinal) {
        self.orphans.push(Orphan { pool, events: None });
        self.bury_orphans(backend, ordinal);
    }

    fn bury_orphans(&mut self, backend: &dyn Backend, ordinal: Ordinal) {
        let slots = &self.slots;
        self.orphans.retain_mut(|Orphan { pool, events }| {
            if events.is_none() && pool.stats(slots).is_ok_and(|stats| stats.bytes_in_use == 0) {
                let busy = slots.iter().filter(|slot| !slot.raw.is_idle());
                *events = busy.map(|slot| slot.raw.record()).collect::<Result<_>>().ok();
            }
            let unused = events.as_ref().is_some_and(|events| events.iter().all(|e| e.is_complete()));
            if unused {
                pool.close(backend, ordinal);
            }
            !unused
        });
    }

    /// Forgets retired streams that have finished.
    fn reap(&mut self) {
        let Self { slots, pool, retired, .. } = self;
        retired.retain(|&id| {
            let busy = slots.get(id).is_some_and(|slot| !slot.raw.is_idle());
            if !busy {
                slots.remove(id);
                pool.give_to_anyone(id);
            }
            busy
        });
    }
}

pub(crate) struct DeviceInner {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) ordinal: Ordinal,
    pub(crate) info: DeviceInfo,
    submission: Mutex<Submission>,
    /// Streams whose last handle has gone since the submission lock was last taken. A lock of its own, never
    /// held while anything else happens, because the last handle may go anywhere.
    retiring: Mutex<Vec<u64>>,
    any_retiring: AtomicBool,
}

impl DeviceInner {
    pub(crate) fn new(backend: Arc<dyn Backend>, ordinal: Ordinal, info: DeviceInfo) -> Arc<Self> {
        let pool = Pool::new(backend.traits(ordinal));
        let submission = Mutex::new(Submission {
            slots: Slots::default(),
            pool,
            orphans: Vec::new(),
            retired: Vec::new(),
            next_stream: 1,
        });
        let (retiring, any_retiring) = (Mutex::new(Vec::new()), AtomicBool::new(false));
        Arc::new(Self { backend, ordinal, info, submission, retiring, any_retiring })
    }

    pub(crate) fn submission(&self) -> MutexGuard<'_, Submission> {
        let mut submission = lock(&self.submission);
        if self.any_retiring.load(Ordering::Acquire) {
            let mut retiring = lock(&self.retiring);
            self.any_retiring.store(false, Ordering::Release);
            submission.retired.append(&mut retiring);
        }
        if !submission.retired.is_empty() {
            submission.reap();
        }
        submission
    }

    /// The last handle of a stream has gone.
    pub(crate) fn retire(&self, stream: u64) {
        let mut retiring = lock(&self.retiring);
        retiring.push(stream);
        // Under the lock, so that it agrees with the list in every order of threads.
        self.any_retiring.store(true, Ordering::Release);
    }

    pub(crate) fn pool_context(&self, timeout: Duration) -> PoolContext<'_> {
        PoolContext { backend: self.backend.as_ref(), ordinal: self.ordinal, device: &self.info.id, timeout }
    }
}

/// What a device leaves behind: memory that is given back when the last stream has passed.
struct Estate {
    backend: Arc<dyn Backend>,
    ordinal: Ordinal,
    streams: Vec<(Arc<dyn RawStream>, Duration)>,
    /// Not dropped by itself: memory that a stuck kernel may still use is leaked rather than unmapped.
    pools: ManuallyDrop<Vec<Pool>>,
}

impl Estate {
    fn settle(self) {
        if self.streams.iter().all(|(raw, timeout)| raw.synchronize(*timeout).is_ok()) {
            for mut pool in ManuallyDrop::into_inner(self.pools) {
                pool.close(self.backend.as_ref(), self.ordinal);
            }
        }
    }
}

impl Drop for DeviceInner {
    fn drop(&mut self) {
        // Streams and buffers hold the device, so no handle is left; work may be.
        let submission = self.submission.get_mut().unwrap_or_else(PoisonError::into_inner);
        let traits = self.backend.traits(self.ordinal);
        let main = core::mem::replace(&mut submission.pool, Pool::new(traits));
        let orphans = submission.orphans.drain(..).map(|orphan| orphan.pool);
        let estate = Estate {
            backend: self.backend.clone(),
            ordinal: self.ordinal,
            streams: submission.slots.iter().map(|slot| (slot.raw.clone(), slot.timeout)).collect(),
            pools: ManuallyDrop::new(orphans.chain([main]).collect()),
        };
        submission.slots = Slots::default();
        if estate.streams.iter().all(|(raw, _)| raw.is_idle()) {
            estate.settle();
        } else {
            // The last handle may be dropped anywhere, by a kernel's own closure too: nobody waits here. Where
            // no thread can be had the memory is leaked.
            let _ = thread::Builder::new().name("portolan-estate".into()).spawn(|| estate.settle());
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
        submission.slots.add(id, raw.clone(), options.timeout);
        drop(submission);
        Ok(Stream::from_inner(StreamInner::new(id, self.0.clone(), raw, options)))
    }

    /// What running an operator would do.
    pub fn support(&self, query: &OpQuery<'_>) -> Support {
        crate::form::support(self.0.backend.as_ref(), self.0.ordinal, query)
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
