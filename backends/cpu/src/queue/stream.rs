//! An in-order queue of kernels.
//!
//! Work is a boxed closure over addresses and sizes. It holds no tensor handles: memory stays valid because
//! the pool reuses it only behind this work. After the first fault the rest is skipped, events still signal.

use super::event::CpuEvent;
use super::handoff::Handoff;
use super::latch::FirstFault;
use crate::Isa;
use crate::options::Executor;
use crate::pool::Team;
use portolan_core::sync::thread::{self, JoinHandle};
use portolan_core::sync::{Mutex, lock};
use portolan_core::{Fault, Launch, RawEvent, RawStream};
use portolan_ops::{OpError, OpName, Result};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What a kernel runs with.
pub(crate) struct Exec {
    pub(crate) team: Arc<Team>,
    /// At most so many threads of the team.
    pub(crate) threads: usize,
    pub(crate) isa: Isa,
}

impl<'a> From<&'a Exec> for crate::elementwise::Exec<'a> {
    fn from(exec: &'a Exec) -> Self {
        Self { team: &exec.team, max_threads: exec.threads, isa: exec.isa }
    }
}

/// Told of a stream's first fault.
pub(crate) trait Witness: Send + Sync {
    fn stream_failed(&self, fault: &Fault);
}

type Task = Box<dyn FnOnce(&Exec) -> Result<()> + Send>;

enum Entry {
    Task { seq: u64, op: OpName, task: Task },
    Signal(Arc<CpuEvent>),
    Wait { event: Arc<CpuEvent>, seq: u64 },
}

pub(crate) struct Shared {
    handoff: Handoff<Entry>,
    fault: FirstFault<Fault>,
    witnesses: Mutex<Vec<Weak<dyn Witness>>>,
    exec: Exec,
    executor: Executor,
    number: u64,
    timeout: Duration,
}

pub(crate) struct CpuStream {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

impl CpuStream {
    pub(crate) fn new(executor: Executor, exec: Exec, number: u64, timeout: Duration) -> Result<Self> {
        let (handoff, fault) = (Handoff::new(), FirstFault::new());
        let witnesses = Mutex::new(Vec::new());
        let shared = Arc::new(Shared { handoff, fault, witnesses, exec, executor, number, timeout });
        let worker = match executor {
            Executor::Inline => None,
            Executor::Queued | Executor::Chaotic { .. } => {
                let shared = shared.clone();
                let spawned = thread::Builder::new()
                    .name(format!("portolan-stream-{number}"))
                    .spawn(move || shared.work_off());
                Some(spawned.map_err(|error| OpError::Unavailable {
                    backend: "cpu".into(),
                    what: format!("the operating system refused a stream thread ({error}); use fewer streams or the inline executor"),
                })?)
            }
        };
        Ok(Self { shared, worker })
    }

    /// Enqueues a kernel for the operator being launched.
    pub(crate) fn enqueue(
        launch: &Launch<'_>,
        task: impl FnOnce(&Exec) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let Some(stream) = launch.raw().as_any().downcast_ref::<CpuStream>() else {
            return Err(OpError::internal(launch.op_name(), "the stream is not one of the cpu backend"));
        };
        stream.shared.handoff.push(Entry::Task {
            seq: launch.seq(),
            op: launch.op_name(),
            task: Box::new(task),
        });
        Ok(())
    }
}

impl CpuStream {
    /// Tells `witness` of the stream's first fault: now, if it has happened.
    pub(crate) fn watch(stream: &dyn RawStream, witness: Weak<dyn Witness>) {
        let Some(stream) = stream.as_any().downcast_ref::<CpuStream>() else { return };
        let mut witnesses = lock(&stream.shared.witnesses);
        // Asked under the lock: whoever sets a fault takes the list afterwards.
        if let Some(fault) = stream.shared.fault.get() {
            drop(witnesses);
            if let Some(witness) = witness.upgrade() {
                witness.stream_failed(&fault);
            }
        } else if !witnesses.iter().any(|known| known.ptr_eq(&witness)) {
            witnesses.retain(|known| known.strong_count() != 0);
            witnesses.push(witness);
        }
    }
}

impl Shared {
    /// The worker thread of a queued stream.
    fn work_off(&self) {
        let mut position = 0u64;
        let mut batch = VecDeque::new();
        while self.handoff.take(&mut batch) {
            while let Some(entry) = batch.pop_front() {
                self.delay(position);
                position += 1;
                self.execute(entry);
                self.handoff.finish_one();
            }
        }
    }

    /// Works the queue off on the calling thread until it is `enough`, for streams without a thread.
    pub(super) fn drain_if_inline(&self, enough: impl Fn() -> bool) {
        if self.executor == Executor::Inline {
            self.handoff.work_off_here(self.timeout, enough, |entry| self.execute(entry));
        }
    }

    fn execute(&self, entry: Entry) {
        match entry {
            Entry::Signal(event) => event.signal(),
            Entry::Wait { event, seq } => {
                if let Err(error) = event.synchronize(self.timeout) {
                    self.fail(seq, "wait".into(), error);
                }
            }
            Entry::Task { .. } if self.fault.is_present() => {}
            Entry::Task { seq, op, task } => {
                let outcome = catch_unwind(AssertUnwindSafe(|| task(&self.exec)));
                let error = match outcome {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error,
                    Err(panic) => {
                        OpError::internal(op.clone(), format!("a kernel panicked: {}", panic_text(&panic)))
                    }
                };
                self.fail(seq, op, error);
            }
        }
    }

    fn fail(&self, seq: u64, op: OpName, error: OpError) {
        let fault = Fault { seq, op, source: Arc::new(error) };
        self.fault.set(fault.clone());
        let witnesses = core::mem::take(&mut *lock(&self.witnesses));
        witnesses.iter().filter_map(Weak::upgrade).for_each(|witness| witness.stream_failed(&fault));
    }

    /// The chaotic executor's delay before entry `position`: none for half of them, else up to 300 µs.
    fn delay(&self, position: u64) {
        if let Executor::Chaotic { seed } = self.executor {
            let mixed = splitmix(seed ^ splitmix(self.number) ^ splitmix(position).rotate_left(17));
            if mixed & 1 == 1 {
                std::thread::sleep(Duration::from_micros((mixed >> 1) % 300));
            }
        }
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): spreads neighbouring seeds.
fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn panic_text(panic: &Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

impl RawStream for CpuStream {
    fn record(&self) -> Result<Arc<dyn RawEvent>> {
        let event = Arc::new(CpuEvent::new(Arc::downgrade(&self.shared)));
        // An idle queue is at its end already; else whoever works it off signals.
        if self.shared.handoff.is_idle() {
            event.signal();
        } else {
            self.shared.handoff.push(Entry::Signal(event.clone()));
        }
        Ok(event)
    }

    fn stamp(&self) -> Result<Arc<dyn RawEvent>> {
        let event = Arc::new(CpuEvent::new(Arc::downgrade(&self.shared)));
        self.shared.handoff.push(Entry::Signal(event.clone()));
        Ok(event)
    }

    fn wait(&self, event: &Arc<dyn RawEvent>, seq: u64) -> Result<()> {
        if event.is_complete() {
            return Ok(());
        }
        let any: Arc<dyn RawEvent> = event.clone();
        let Some(event) = downcast(any) else {
            return Err(OpError::internal("wait", "the event is not one of the cpu backend"));
        };
        self.shared.handoff.push(Entry::Wait { event, seq });
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.shared.handoff.is_idle()
    }

    fn synchronize(&self, timeout: Duration) -> Result<()> {
        self.shared.drain_if_inline(|| false);
        match self.shared.handoff.wait_for_all(timeout) {
            true => Ok(()),
            false => Err(OpError::Timeout { what: format!("stream {}", self.shared.number), after: timeout }),
        }
    }

    fn fault(&self) -> Option<Fault> {
        self.shared.fault.get()
    }

    fn drain(&self) {
        self.shared.drain_if_inline(|| false);
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn downcast(event: Arc<dyn RawEvent>) -> Option<Arc<CpuEvent>> {
    let any: Arc<dyn Any + Send + Sync> = event;
    any.downcast().ok()
}

impl Drop for CpuStream {
    fn drop(&mut self) {
        self.shared.handoff.stop();
        // A worker stuck in a kernel is left behind rather than waited for: it owns what it needs. Nor does a
        // worker wait for itself, should the last handle go in one of its kernels.
        let idle = self.shared.handoff.is_idle();
        let me = thread::current().id();
        if let Some(worker) = self.worker.take().filter(|worker| idle && worker.thread().id() != me) {
            let _ = worker.join();
        }
    }
}
