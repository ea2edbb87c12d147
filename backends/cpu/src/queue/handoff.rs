//! The way of entries from those who submit to the one thread that executes them, in order, and the way back of
//! the news that they have finished.
//!
//! It knows nothing of kernels, so that models can run it as it is.

use portolan_core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use portolan_core::sync::thread::{self, ThreadId};
use portolan_core::sync::{
    Condvar, Mutex, Patience, deadline, hint, lock, wait, wait_timeout, write_before_read,
};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long an idle worker looks for work before it parks: longer than the gap between two submissions of
/// one decode step.
const SPIN: Duration = Duration::from_micros(50);

struct State<T> {
    entries: VecDeque<T>,
    enqueued: u64,
    /// The thread that works off a queue without a thread of its own.
    runner: Option<ThreadId>,
    parked: bool,
    stop: bool,
}

pub(crate) struct Handoff<T> {
    state: Mutex<State<T>>,
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
}

impl<T> Handoff<T> {
    pub(crate) fn new() -> Self {
        let state = State { entries: VecDeque::new(), enqueued: 0, runner: None, parked: false, stop: false };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            finished: AtomicU64::new(0),
            waiters: AtomicUsize::new(0),
            done: Condvar::new(),
            pending: AtomicBool::new(false),
        }
    }

    pub(crate) fn push(&self, entry: T) {
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

    /// Moves all there is into `batch`, which is empty, so that the worker meets submitting threads at the lock
    /// as rarely as possible. Waits for something to do; false when there is nothing and never will be.
    pub(crate) fn take(&self, batch: &mut VecDeque<T>) -> bool {
        let patience = Patience::new(SPIN);
        while !self.pending.load(Ordering::Acquire) && !patience.is_over() {
            hint::spin_loop();
        }
        let mut state = lock(&self.state);
        while state.entries.is_empty() && !state.stop {
            state.parked = true;
            state = wait(&self.work, state);
        }
        state.parked = false;
        core::mem::swap(batch, &mut state.entries);
        self.pending.store(false, Ordering::Release);
        !batch.is_empty()
    }

    /// Makes [`Handoff::take`] return false once everything was taken.
    pub(crate) fn stop(&self) {
        {
            let mut state = lock(&self.state);
            state.stop = true;
            state.parked = false;
        }
        self.work.notify_one();
    }

    /// Books that the entry taken first of those not yet booked was executed.
    pub(crate) fn finish_one(&self) {
        self.finished.fetch_add(1, Ordering::SeqCst);
        write_before_read();
        // A waiter counts itself before it looks at `finished`: one of the two sees the other.
        if self.waiters.load(Ordering::SeqCst) != 0 {
            drop(lock(&self.state));
            self.done.notify_all();
        }
    }

    /// Blocks until `finished` has reached what is enqueued now; false when `timeout` passed first.
    pub(crate) fn wait_for_all(&self, timeout: Duration) -> bool {
        let end = deadline(timeout);
        let mut state = lock(&self.state);
        let target = state.enqueued;
        self.waiters.fetch_add(1, Ordering::SeqCst);
        write_before_read();
        let finished = loop {
            if self.finished.load(Ordering::SeqCst) >= target {
                break true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break false;
            }
            state = wait_timeout(&self.done, state, left);
        };
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        finished
    }

    pub(crate) fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.enqueued == self.finished.load(Ordering::SeqCst)
    }

    /// Works the queue off on the calling thread, for queues without a thread, until it is empty or `enough`: what is
    /// behind an event may wait for a queue that the caller works off, in its turn. Where another thread is at it, waits
    /// until that one has done what is enqueued now, or leaves; for `timeout` at most.
    pub(crate) fn work_off_here(
        &self,
        timeout: Duration,
        enough: impl Fn() -> bool,
        mut execute: impl FnMut(T),
    ) {
        let me = thread::current().id();
        let mut state = lock(&self.state);
        let target = state.enqueued;
        if state.runner.is_some_and(|runner| runner != me) {
            let end = deadline(timeout);
            self.waiters.fetch_add(1, Ordering::SeqCst);
            write_before_read();
            while state.runner.is_some() && !enough() && self.finished.load(Ordering::SeqCst) < target {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                state = wait_timeout(&self.done, state, left);
            }
            self.waiters.fetch_sub(1, Ordering::SeqCst);
        }
        // An entry that uses its own queue: what it enqueues runs after it.
        if state.runner.is_some() {
            return;
        }
        state.runner = Some(me);
        while !enough() {
            let Some(entry) = state.entries.pop_front() else { break };
            drop(state);
            execute(entry);
            self.finish_one();
            state = lock(&self.state);
        }
        self.pending.store(!state.entries.is_empty(), Ordering::Release);
        state.runner = None;
        // One of those who wait takes over what is left.
        if self.waiters.load(Ordering::SeqCst) != 0 {
            self.done.notify_all();
        }
    }
}
