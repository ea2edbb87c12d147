//! An in-order queue of kernels.
//!
//! Work is a boxed closure over addresses and sizes. It holds no tensor handles: memory stays valid because
//! the pool reuses it only behind this work. After the first fault the rest is skipped, events still signal.

use super::event::{CpuEvent, deadline};
use crate::Isa;
use crate::options::Executor;
use crate::pool::Team;
use portolan_core::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    lock,
};
use portolan_core::{Fault, Launch, RawEvent, RawStream};
use portolan_ops::{OpError, OpName, Result};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

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

type Task = Box<dyn FnOnce(&Exec) -> Result<()> + Send>;

enum Entry {
    Task { seq: u64, op: OpName, task: Task },
    Signal(Arc<CpuEvent>),
    Wait { event: Arc<CpuEvent>, seq: u64 },
}

/// How long an idle worker looks for work before it parks: longer than the gap between two submissions of
/// one decode step.
const SPIN: Duration = Duration::from_micros(50);

struct State {
    entries: VecDeque<Entry>,
    enqueued: u64,
    /// The thread that works off a queue without a thread of its own.
    runner: Option<ThreadId>,
    parked: bool,
    stop: bool,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something to do, or time to stop.
    work: Condvar,
    /// Entries that have finished; `enqueued` of them when idle.
    finished: AtomicU64,
    /// Threads that wait for `done`: waking nobody costs a system call all the same.
    waiters: AtomicUsize,
    /// An entry finished.
    done: Condvar,
    /// Set while `entries` is not empty, so that an idle worker can look without the lock.
    pending: AtomicBool,
    faulted: AtomicBool,
    fault: Mutex<Option<Fault>>,
    exec: Exec,
    executor: Executor,
    number: u64,
    timeout: Duration,
}

pub(crate) struct CpuStream {
    shared: Arc<Shared>,
    worker: Option<std::thread::JoinHandle<()>>,
}

impl CpuStream {
    pub(crate) fn new(executor: Executor, exec: Exec, number: u64, timeout: Duration) -> Result<Self> {
        let state = State { entries: VecDeque::new(), enqueued: 0, runner: None, parked: false, stop: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            finished: AtomicU64::new(0),
            waiters: AtomicUsize::new(0),
            done: Condvar::new(),
            pending: AtomicBool::new(false),
            faulted: AtomicBool::new(false),
            fault: Mutex::new(None),
            exec,
            executor,
            number,
            timeout,
        });
        let worker = match executor {
            Executor::Inline => None,
            Executor::Queued | Executor::Chaotic { .. } => {
                let shared = shared.clone();
                let spawned = std::thread::Builder::new()
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
        stream.shared.push(Entry::Task { seq: launch.seq(), op: launch.op_name(), task: Box::new(task) });
        Ok(())
    }
}

impl Shared {
    fn push(&self, entry: Entry) {
        let mut state = lock(&self.state);
        state.entries.push_back(entry);
        state.enqueued += 1;
        self.pending.store(true, Ordering::Release);
        let wake = core::mem::take(&mut state.parked);
        drop(state);
        if wake {
            self.work.notify_one();
        }
    }

    /// The worker thread of a queued stream. It takes all there is at once, so that it meets the submitting
    /// thread at the lock as rarely as possible.
    fn work_off(&self) {
        let mut position = 0u64;
        let mut batch = VecDeque::new();
        loop {
            let spin = Instant::now();
            while !self.pending.load(Ordering::Acquire) && spin.elapsed() < SPIN {
                std::hint::spin_loop();
            }
            let mut state = lock(&self.state);
            while state.entries.is_empty() && !state.stop {
                state.parked = true;
                state = self.work.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
            }
            state.parked = false;
            if state.entries.is_empty() {
                return;
            }
            core::mem::swap(&mut batch, &mut state.entries);
            self.pending.store(false, Ordering::Release);
            drop(state);
            while let Some(entry) = batch.pop_front() {
                self.delay(position);
                position += 1;
                self.execute(entry);
                self.finish_one();
            }
        }
    }

    fn finish_one(&self) {
        self.finished.fetch_add(1, Ordering::SeqCst);
        // A waiter counts itself before it looks at `finished`: one of the two sees the other.
        if self.waiters.load(Ordering::SeqCst) != 0 {
            drop(lock(&self.state));
            self.done.notify_all();
        }
    }

    /// Blocks until `finished` has reached what is enqueued now; false when `timeout` passed first.
    fn wait_for_all(&self, timeout: Duration) -> bool {
        let end = deadline(timeout);
        let mut state = lock(&self.state);
        let target = state.enqueued;
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let finished = loop {
            if self.finished.load(Ordering::SeqCst) >= target {
                break true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            state = self.done.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        };
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        finished
    }

    fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.enqueued == self.finished.load(Ordering::SeqCst)
    }

    /// Works the queue off on the calling thread, for streams without a thread.
    pub(super) fn drain_if_inline(&self) {
        if self.executor != Executor::Inline {
            return;
        }
        let me = std::thread::current().id();
        let mut state = lock(&self.state);
        match state.runner {
            // A kernel that uses its own stream: what it enqueues runs after it.
            Some(runner) if runner == me => return,
            // Another thread is at it: it will see what we enqueued.
            Some(_) => {
                drop(state);
                self.wait_for_all(self.timeout);
                return;
            }
            None => state.runner = Some(me),
        }
        while let Some(entry) = state.entries.pop_front() {
            drop(state);
            self.execute(entry);
            self.finish_one();
            state = lock(&self.state);
        }
        self.pending.store(false, Ordering::Release);
        state.runner = None;
    }

    fn execute(&self, entry: Entry) {
        match entry {
            Entry::Signal(event) => event.signal(),
            Entry::Wait { event, seq } => {
                if let Err(error) = event.synchronize(self.timeout) {
                    self.fail(seq, "wait".into(), error);
                }
            }
            Entry::Task { .. } if self.faulted.load(Ordering::Acquire) => {}
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
        lock(&self.fault).get_or_insert_with(|| Fault { seq, op, source: Arc::new(error) });
        self.faulted.store(true, Ordering::Release);
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
        if self.shared.is_idle() {
            event.signal();
        } else {
            self.shared.push(Entry::Signal(event.clone()));
        }
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
        self.shared.push(Entry::Wait { event, seq });
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.shared.is_idle()
    }

    fn synchronize(&self, timeout: Duration) -> Result<()> {
        self.shared.drain_if_inline();
        match self.shared.wait_for_all(timeout) {
            true => Ok(()),
            false => Err(OpError::Timeout { what: format!("stream {}", self.shared.number), after: timeout }),
        }
    }

    fn fault(&self) -> Option<Fault> {
        if !self.shared.faulted.load(Ordering::Acquire) {
            return None;
        }
        lock(&self.shared.fault).clone()
    }

    fn drain(&self) {
        self.shared.drain_if_inline();
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
        {
            let mut state = lock(&self.shared.state);
            state.stop = true;
            state.parked = false;
        }
        self.shared.work.notify_one();
        // A worker stuck in a kernel is left behind rather than waited for: it owns what it needs. Nor does a
        // worker wait for itself, should the last handle go in one of its kernels.
        let idle = self.shared.is_idle();
        let me = std::thread::current().id();
        if let Some(worker) = self.worker.take().filter(|worker| idle && worker.thread().id() != me) {
            let _ = worker.join();
        }
    }
}
