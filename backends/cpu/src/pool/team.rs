//! A fixed team of threads that runs one parallel region at a time, spinning briefly before it parks.
//!
//! Work is handed out by index, and what an index computes never depends on who runs it or on how many
//! threads there are: that is what makes results independent of the thread count.

use portolan_core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use portolan_core::sync::{
    Condvar, Mutex, Patience, UnsafeCell, hint, lock, thread, thread_local, wait, write_before_read,
};
use portolan_ops::{OpError, Result};
use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::Duration;

/// How long an idle worker looks for the next region before it parks: several times the gap between two
/// kernels of one decode step, and about the price of one futex wake-up, so that parking never costs much
/// more than it saves.
const SPIN: Duration = Duration::from_micros(40);

/// The bit of [`Shared::gate`] that is set while there is no region to join; the rest counts who is inside.
const CLOSED: usize = 1 << (usize::BITS - 1);

thread_local! {
    /// Whether this thread is executing a task; a region started from inside one runs inline.
    #[allow(clippy::missing_const_for_thread_local, reason = "loom's macro takes no const block")]
    static IN_TASK: Cell<bool> = Cell::new(false);
}

/// What a region does; read only by threads that are inside the gate.
struct Region {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    /// Workers that may still join, besides the caller.
    seats: AtomicUsize,
    next: AtomicUsize,
}

struct Shared {
    /// `CLOSED` and the number of workers inside. A worker that enters while it is closed leaves at once
    /// without touching the region; the caller closes it and waits for 0 before the region ends.
    gate: AtomicUsize,
    /// Counts regions; changes after the gate has been opened.
    generation: AtomicUsize,
    region: UnsafeCell<Region>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    /// Workers that are parked, or about to be and holding `park`.
    sleeping: AtomicUsize,
    park: Mutex<()>,
    wake: Condvar,
    /// More threads than processors: whoever waits gives its processor away instead of spinning.
    crowded: bool,
}

// SAFETY: `region` is written only by the caller that holds `Team::region`, while the gate is closed and
// nobody is inside; workers read it only after entering an open gate. The task pointer is valid until
// `run_with` returns, which it does only after closing the gate and seeing everybody leave.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// A team of worker threads; the caller of [`Team::run`] is one of them.
pub struct Team {
    shared: Arc<Shared>,
    workers: Vec<thread::JoinHandle<()>>,
    region: Mutex<()>,
}

impl Team {
    /// A team of `threads` (at least 1), of which `threads − 1` are spawned.
    ///
    /// # Errors
    /// `Unavailable` when the operating system refuses a thread.
    pub fn new(threads: usize) -> Result<Self> {
        fn nothing(_: usize) {}
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        let shared = Arc::new(Shared {
            gate: AtomicUsize::new(CLOSED),
            generation: AtomicUsize::new(0),
            region: UnsafeCell::new(Region {
                task: &nothing,
                tasks: 0,
                seats: AtomicUsize::new(0),
                next: AtomicUsize::new(0),
            }),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            park: Mutex::new(()),
            wake: Condvar::new(),
            crowded: threads > processors,
        });
        // Workers spawned before a failure are joined when the team is dropped.
        let mut team = Self { shared, workers: Vec::new(), region: Mutex::new(()) };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let spawned =
                thread::Builder::new().name(format!("portolan-cpu-{index}")).spawn(move || shared.work());
            match spawned {
                Ok(handle) => team.workers.push(handle),
                Err(error) => {
                    return Err(OpError::Unavailable {
                        backend: "cpu".into(),
                        what: format!(
                            "the operating system refused worker thread {index} of {threads} ({error}); \
                             ask for fewer threads"
                        ),
                    });
                }
            }
        }
        Ok(team)
    }

    /// Number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` once for every `i` in `0..tasks`, in any order and on any of the threads, and returns
    /// when all are done. A panic in a task is resumed here after the others have finished.
    ///
    /// Regions of different callers follow one another; one started inside a task runs on that task's
    /// thread, as does one of a single task.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.run_with(tasks, usize::MAX, task);
    }

    /// As [`Team::run`], on at most `max_threads` threads, the caller included.
    pub fn run_with(&self, tasks: usize, max_threads: usize, task: &(dyn Fn(usize) + Sync)) {
        let threads = self.threads().min(max_threads).min(tasks);
        if threads <= 1 || IN_TASK.with(Cell::get) {
            let mut first = None;
            for index in 0..tasks {
                call(task, index, |payload| keep_first(&mut first, payload));
            }
            if let Some(payload) = first {
                resume_unwind(payload);
            }
            return;
        }
        let region = lock(&self.region);
        let panicked = self.shared.lead(tasks, threads, task);
        drop(region);
        if let Some(payload) = panicked {
            resume_unwind(payload);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.generation.fetch_add(1, Ordering::SeqCst);
        drop(lock(&self.shared.park));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of tasks; it has none of its own to report.
            let _ = worker.join();
        }
    }
}

/// Keeps the payload of the panic that was caught first.
fn keep_first(slot: &mut Option<Box<dyn Any + Send>>, payload: Box<dyn Any + Send>) {
    slot.get_or_insert(payload);
}

/// Calls `task(index)` with nested regions inline, and hands a panic to `panicked`.
fn call(task: &(dyn Fn(usize) + Sync), index: usize, panicked: impl FnOnce(Box<dyn Any + Send>)) {
    let before = IN_TASK.with(|inside| inside.replace(true));
    let outcome = catch_unwind(AssertUnwindSafe(|| task(index)));
    IN_TASK.with(|inside| inside.set(before));
    if let Err(payload) = outcome {
        panicked(payload);
    }
}

impl Shared {
    /// Runs one region from the caller's thread; the caller holds the region lock.
    fn lead(
        &self,
        tasks: usize,
        threads: usize,
        task: &(dyn Fn(usize) + Sync),
    ) -> Option<Box<dyn Any + Send>> {
        // SAFETY: only the lifetime changes; the pointer is not followed after this function returns, as
        // the gate is closed and empty by then.
        let task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        let region = Region { task, tasks, seats: AtomicUsize::new(threads - 1), next: AtomicUsize::new(0) };
        // SAFETY: the gate is closed and whoever was inside has left, so nobody reads the region.
        self.region.with_mut(|slot| unsafe { *slot = region });
        self.gate.fetch_and(!CLOSED, Ordering::Release);
        self.generation.fetch_add(1, Ordering::SeqCst);
        write_before_read();
        let sleeping = self.sleeping.load(Ordering::SeqCst);
        if sleeping > 0 {
            drop(lock(&self.park));
            for _ in 0..sleeping.min(threads - 1) {
                self.wake.notify_one();
            }
        }
        // SAFETY: nobody writes the region before this function returns.
        self.region.with(|region| self.claim(unsafe { &*region }));
        self.gate.fetch_or(CLOSED, Ordering::Relaxed);
        let mut spins = 0u32;
        while self.gate.load(Ordering::Acquire) != CLOSED {
            spins = spins.saturating_add(1);
            if self.crowded || spins > 200 {
                thread::yield_now();
            } else {
                hint::spin_loop();
            }
        }
        lock(&self.panic).take()
    }

    /// Claims and runs tasks until none is left.
    fn claim(&self, region: &Region) {
        // SAFETY: the caller is inside the gate (or leads), so the task is alive.
        let task = unsafe { &*region.task };
        loop {
            let index = region.next.fetch_add(1, Ordering::Relaxed);
            if index >= region.tasks {
                return;
            }
            call(task, index, |payload| keep_first(&mut lock(&self.panic), payload));
        }
    }

    /// The life of a worker.
    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.await_region(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if self.gate.fetch_add(1, Ordering::Acquire) & CLOSED == 0 {
                self.region.with(|region| {
                    // SAFETY: inside an open gate: nobody writes the region until we leave.
                    let region = unsafe { &*region };
                    let seated =
                        region.seats.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |s| s.checked_sub(1));
                    if seated.is_ok() {
                        self.claim(region);
                    }
                });
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits until the generation differs from `seen`, first spinning, then parked; returns the new one.
    fn await_region(&self, seen: usize) -> usize {
        let patience = Patience::new(SPIN);
        while !patience.is_over() {
            for _ in 0..32 {
                let now = self.generation.load(Ordering::Acquire);
                if now != seen {
                    return now;
                }
                if self.crowded {
                    thread::yield_now();
                } else {
                    hint::spin_loop();
                }
            }
        }
        let mut guard = lock(&self.park);
        // The leader changes the generation and then reads `sleeping`; we do it the other way round, so one
        // of us sees the other.
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        write_before_read();
        let now = loop {
            let now = self.generation.load(Ordering::SeqCst);
            if now != seen {
                break now;
            }
            guard = wait(&self.wake, guard);
        };
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
        now
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn counts(team: &Team, tasks: usize, max_threads: usize) -> Vec<usize> {
        let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        team.run_with(tasks, max_threads, &|i| {
            hits[i].fetch_add(1, Ordering::Relaxed);
        });
        hits.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_index_runs_exactly_once() {
        for threads in [1, 2, 3, 8] {
            let team = Team::new(threads).unwrap();
            assert_eq!(team.threads(), threads);
            for tasks in [0, 1, 2, 7, 1000] {
                for _ in 0..50 {
                    assert_eq!(counts(&team, tasks, usize::MAX), vec![1; tasks]);
                }
            }
        }
    }

    #[test]
    fn a_parked_team_wakes_up() {
        let team = Team::new(3).unwrap();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(3));
            assert_eq!(counts(&team, 100, usize::MAX), vec![1; 100]);
        }
    }

    #[test]
    fn no_more_threads_than_asked_for_take_part() {
        let team = Team::new(8).unwrap();
        for limit in [0, 1, 2, 3] {
            let ids = Mutex::new(std::collections::HashSet::new());
            team.run_with(64, limit, &|_| {
                std::thread::sleep(Duration::from_micros(200));
                lock(&ids).insert(std::thread::current().id());
            });
            assert!(lock(&ids).len() <= limit.max(1), "{limit}");
        }
    }

    #[test]
    fn both_threads_take_part_in_a_long_region() {
        let team = Team::new(2).unwrap();
        let ids = Mutex::new(std::collections::HashSet::new());
        team.run(64, &|_| {
            std::thread::sleep(Duration::from_micros(500));
            lock(&ids).insert(std::thread::current().id());
        });
        assert_eq!(lock(&ids).len(), 2);
    }

    #[test]
    fn a_panic_is_resumed_after_the_others_finished_and_the_team_stays_usable() {
        for threads in [1, 2, 8] {
            let team = Team::new(threads).unwrap();
            let done = AtomicUsize::new(0);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.run(20, &|i| {
                    if i % 10 == 3 {
                        resume_unwind(Box::new("broken task"));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"broken task"));
            assert_eq!(done.into_inner(), 18);
            assert_eq!(counts(&team, 33, usize::MAX), vec![1; 33]);
        }
    }

    #[test]
    fn a_region_inside_a_task_runs_inline() {
        let team = Team::new(3).unwrap();
        let total = AtomicUsize::new(0);
        team.run(5, &|_| {
            let id = std::thread::current().id();
            team.run(7, &|_| {
                assert_eq!(std::thread::current().id(), id);
                total.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(total.into_inner(), 35);
    }

    #[test]
    fn regions_of_two_callers_follow_one_another() {
        let team = Team::new(2).unwrap();
        let inside = [AtomicUsize::new(0), AtomicUsize::new(0)];
        std::thread::scope(|scope| {
            for caller in 0..2 {
                let (team, inside) = (&team, &inside);
                scope.spawn(move || {
                    for _ in 0..200 {
                        team.run(4, &|_| {
                            inside[caller].fetch_add(1, Ordering::SeqCst);
                            assert_eq!(inside[1 - caller].load(Ordering::SeqCst), 0);
                            inside[caller].fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn a_team_of_zero_is_the_caller_alone() {
        assert_eq!(Team::new(0).unwrap().threads(), 1);
    }
}
