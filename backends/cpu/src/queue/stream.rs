//! An in-order queue of kernels.
//!
//! Work is a boxed closure over addresses and sizes. It holds no tensor handles: memory stays valid because
//! the pool reuses it only behind this work. After the first fault the rest is skipped, events still signal.

use super::event::CpuEvent;
use crate::Isa;
use crate::options::Executor;
use crate::pool::Team;
use portolan_core::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
    lock,
};
use portolan_core::{Fault, Launch, RawEvent, RawStream};
use portolan_ops::{OpError, OpName, Result};
use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
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
    finished: u64,
    running: bool,
    parked: bool,
    stop: bool,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something to do, or time to stop.
    work: Condvar,
    /// An entry finished.
    done: Condvar,
    /// Set with `enqueued > finished`, so that an idle worker can look without the lock.
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
        let state = State {
            entries: VecDeque::new(),
            enqueued: 0,
            finished: 0,
            running: false,
            parked: false,
            stop: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
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

    /// The worker thread of a queued stream.
    fn work_off(&self) {
        let mut position = 0u64;
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
            let Some(entry) = state.entries.pop_front() else { return };
            state.running = true;
            drop(state);
            self.delay(position);
            position += 1;
            self.execute(entry);
            drop(self.finish_one());
        }
    }

    fn finish_one(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        state.finished += 1;
        state.running = false;
        if state.entries.is_empty() {
            self.pending.store(false, Ordering::Release);
        }
        self.done.notify_all();
        state
    }

    /// Works the queue off on the calling thread, for streams without a thread.
    pub(super) fn drain_if_inline(&self) {
        if self.executor != Executor::Inline {
            return;
        }
        let mut state = lock(&self.state);
        loop {
            // Another thread is at it: it will see what we enqueued, and we wait for that.
            if state.running {
                let target = state.enqueued;
                while state.finished < target && state.running {
                    state = self.done.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                }
                if state.finished >= target {
                    return;
                }
                continue;
            }
            let Some(entry) = state.entries.pop_front() else { return };
            state.running = true;
            drop(state);
            self.execute(entry);
            state = self.finish_one();
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
        let idle = {
            let state = lock(&self.shared.state);
            state.enqueued == state.finished
        };
        if idle {
            event.signal();
        } else {
            self.shared.push(Entry::Signal(event.clone()));
        }
        Ok(event)
    }

    fn wait(&self, event: &Arc<dyn RawEvent>) -> Result<()> {
        if event.is_complete() {
            return Ok(());
        }
        let any: Arc<dyn RawEvent> = event.clone();
        let Some(event) = downcast(any) else {
            return Err(OpError::internal("wait", "the event is not one of the cpu backend"));
        };
        let seq = lock(&self.shared.state).enqueued;
        self.shared.push(Entry::Wait { event, seq });
        Ok(())
    }

    fn is_idle(&self) -> bool {
        let state = lock(&self.shared.state);
        state.enqueued == state.finished
    }

    fn synchronize(&self, timeout: Duration) -> Result<()> {
        self.shared.drain_if_inline();
        let deadline = Instant::now() + timeout;
        let mut state = lock(&self.shared.state);
        let target = state.enqueued;
        while state.finished < target {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) else {
                return Err(OpError::Timeout {
                    what: format!("stream {}", self.shared.number),
                    after: timeout,
                });
            };
            state = self
                .shared
                .done
                .wait_timeout(state, left)
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .0;
        }
        Ok(())
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
        let idle = {
            let mut state = lock(&self.shared.state);
            state.stop = true;
            state.parked = false;
            state.enqueued == state.finished
        };
        self.shared.work.notify_one();
        // A worker stuck in a kernel is left behind rather than waited for: it owns what it needs.
        if let Some(worker) = self.worker.take().filter(|_| idle) {
            let _ = worker.join();
        }
    }
}
