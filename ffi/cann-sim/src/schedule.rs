//! When queued work runs: at a legal moment that a seed chooses, as unpleasant as possible.
//!
//! One thread runs all work, one piece at a time. What a waiting host needs is run first, and nothing more: the heads
//! of the queues its goals depend on, in an order that the seed picks. Beside that, *late* runs nothing, *early* runs
//! whatever is ready as soon as it is enqueued, and *seeded* a few pieces that depend on (seed, submission number). The
//! host waits inside the enqueuing call until those have run, so a schedule depends on nothing but calls and seed.
//!
//! Two things keep a program going that only ever asks: a question that was answered *not yet* a few times is a goal,
//! and functions of the program that a stream is to call are run after a short while.

use crate::collective::{Key, Share, carry_out};
use crate::error::{Fail, Result, code};
use crate::fault::KernelFault;
use crate::order::Touch;
use crate::stream::{Point, Task, Work};
use crate::world::{State, World};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

/// How long a function of the program waits at most until its stream gets to it, when nobody asks.
const LIVELY: Duration = Duration::from_millis(20);

/// Who picks the moments that nobody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adversary {
    Late,
    Early,
    Seeded,
}

impl Adversary {
    /// By the name a configuration uses.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "late" => Some(Self::Late),
            "early" => Some(Self::Early),
            "seeded" => Some(Self::Seeded),
            _ => None,
        }
    }
}

/// The state of the schedule.
pub(crate) struct Schedule {
    pub(crate) adversary: Adversary,
    pub(crate) seed: u64,
    /// Pieces of work enqueued, and run, on all streams.
    submitted: u64,
    executed: u64,
    /// Pieces that may run although nobody waits for them.
    credit: u64,
    /// What hosts wait for.
    goals: Vec<Point>,
    /// Whether a piece of work is being run outside the lock.
    running: bool,
    /// Whether a function of the program is being called.
    calling: bool,
    /// Device time in microseconds: never the same twice.
    clock: u64,
    started: Instant,
}

thread_local! {
    static IS_SCHEDULER: Cell<bool> = const { Cell::new(false) };
}

/// SplitMix64 (Steele, Lea and Flood 2014): spreads neighbouring seeds.
pub(crate) fn mix(seed: u64, n: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(n).wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Schedule {
    pub(crate) fn new(adversary: Adversary, seed: u64) -> Self {
        Self {
            adversary,
            seed,
            submitted: 0,
            executed: 0,
            credit: 0,
            goals: Vec::new(),
            running: false,
            calling: false,
            clock: 0,
            started: Instant::now(),
        }
    }

    /// Whether a host waits for a point, or for one behind it on the same stream.
    pub(crate) fn is_awaited(&self, point: Point) -> bool {
        self.goals.iter().any(|goal| goal.stream == point.stream && goal.seq >= point.seq)
    }

    fn tick(&mut self) -> u64 {
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.clock = now.max(self.clock + 1);
        self.clock
    }
}

impl State {
    /// Whether a point has been passed. Streams that are gone have passed all of theirs.
    pub(crate) fn reached(&self, point: Point) -> bool {
        self.streams.get(&point.stream).is_none_or(|stream| stream.done >= point.seq)
    }

    /// The stream whose head runs next, if any may.
    fn pick(&mut self, lively: bool) -> Option<u64> {
        let mut ready = self.heads_for(&self.schedule.goals);
        if ready.is_empty() && self.schedule.credit > 0 {
            ready = self.streams.keys().copied().filter(|&id| self.head_is_ready(id)).collect();
            // A function of the program may wait for whoever enqueues just now.
            ready.retain(|id| !self.streams[id].queue.front().is_some_and(|task| task.work.is_call()));
            self.schedule.credit = if ready.is_empty() { 0 } else { self.schedule.credit - 1 };
        }
        if ready.is_empty() && lively {
            let calls = self.streams.iter().filter_map(|(&id, stream)| {
                let at = stream.queue.iter().rposition(|task| task.work.is_call())?;
                Some(Point { stream: id, seq: stream.done + 1 + at as u64 })
            });
            ready = self.heads_for(&calls.collect::<Vec<_>>());
        }
        let index = mix(self.schedule.seed, self.schedule.executed) % ready.len().max(1) as u64;
        ready.get(index as usize).copied()
    }

    fn has_host_calls(&self) -> bool {
        self.streams.values().any(|stream| stream.queue.iter().any(|task| task.work.is_call()))
    }

    /// Books that the head of a stream is done.
    fn finish(&mut self, id: u64, outcome: Result) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.done += 1;
            if let Err(fail) = outcome {
                stream.fail(fail);
            }
        }
        self.schedule.executed += 1;
    }
}

/// What the scheduler does outside the lock.
enum Step {
    Action(crate::stream::Action),
    Host(crate::stream::HostCall),
    Nothing(Result),
    Hang(Task),
    /// Stays at the head of its queue, and waits there.
    Stay(Task),
    /// Carries out one of the meetings that the task takes part in.
    Meeting(Task, Key, Vec<(u32, Share)>),
}

impl World {
    /// The scheduler's thread.
    pub(crate) fn run_schedule(&'static self) {
        IS_SCHEDULER.set(true);
        let mut state = self.state();
        let mut lively = false;
        loop {
            let Some(id) = state.pick(lively) else {
                self.changed.notify_all();
                let calls = state.has_host_calls();
                let watched = state.watch_meetings().into_iter().chain(state.watch_waits());
                let wake = watched.min().map(|at| at.saturating_duration_since(Instant::now()));
                match wake.into_iter().chain(calls.then_some(LIVELY)).min() {
                    Some(wait) => {
                        let waited = self.changed.wait_timeout(state, wait);
                        let (again, timeout) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
                        (state, lively) = (again, calls && timeout.timed_out());
                    }
                    None => {
                        state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                        lively = false;
                    }
                }
                continue;
            };
            lively = false;
            let Some(task) = state.streams.get_mut(&id).and_then(|stream| stream.queue.pop_front()) else {
                continue;
            };
            let (name, call) = (task.name, task.call);
            let step = begin(&mut state, id, task);
            let outcome = match step {
                Step::Hang(task) => {
                    if let Some(stream) = state.streams.get_mut(&id) {
                        stream.hung = true;
                        stream.queue.push_front(task);
                    }
                    continue;
                }
                Step::Stay(task) => {
                    if let Some(stream) = state.streams.get_mut(&id) {
                        stream.queue.push_front(task);
                    }
                    self.changed.notify_all();
                    continue;
                }
                Step::Nothing(outcome) => outcome,
                Step::Meeting(task, key, shares) => {
                    state.schedule.running = true;
                    drop(state);
                    let outcome = catch_unwind(AssertUnwindSafe(|| carry_out(self, shares)));
                    let panicked =
                        || Err(Fail::new(code::INTERNAL, "the simulator panicked in a collective"));
                    state = self.state();
                    state.schedule.running = false;
                    state.end_meeting(&key, outcome.unwrap_or_else(|_| panicked()));
                    // The task ends once all of its meetings have.
                    if let Some(stream) = state.streams.get_mut(&id) {
                        stream.queue.push_front(task);
                    }
                    self.changed.notify_all();
                    continue;
                }
                Step::Action(action) => {
                    state.schedule.running = true;
                    drop(state);
                    let outcome = catch_unwind(AssertUnwindSafe(|| action(self))).unwrap_or_else(|_| {
                        Err(Fail::new(code::INTERNAL, "the simulator panicked while it ran this"))
                    });
                    state = self.state();
                    outcome
                }
                Step::Host(host) => {
                    state.schedule.calling = true;
                    self.changed.notify_all();
                    drop(state);
                    // SAFETY: the program enqueued this function with this argument for exactly this.
                    unsafe { (host.function)(host.argument) };
                    state = self.state();
                    Ok(())
                }
            };
            (state.schedule.running, state.schedule.calling) = (false, false);
            state.schedule.tick();
            let named =
                outcome.map_err(|fail| Fail::new(fail.code, format!("{name} (call {call}): {}", fail.text)));
            state.finish(id, named);
            self.changed.notify_all();
        }
    }

    /// Enqueues work on a stream; it runs now as far as the adversary likes. A stream that is being captured records
    /// it instead.
    pub(crate) fn submit(
        &'static self,
        state: MutexGuard<'static, State>,
        id: u64,
        name: &'static str,
        work: Work,
    ) -> Result<Point> {
        self.submit_touching(state, id, name, work, Vec::new())
    }

    /// As `submit`, work that reads or writes such memory.
    pub(crate) fn submit_touching(
        &'static self,
        mut state: MutexGuard<'static, State>,
        id: u64,
        name: &'static str,
        work: Work,
        touches: Vec<Touch>,
    ) -> Result<Point> {
        refuse_on_scheduler()?;
        let stream = state.streams.get(&id).ok_or_else(|| Fail::parameter("the stream is gone"))?;
        if stream.capture.is_some() {
            state.record(id, name, work)?;
            // Nothing was enqueued: whoever waits for it waits for nothing.
            return Ok(Point { stream: id, seq: 0 });
        }
        let next = Point { stream: id, seq: stream.submitted + 1 };
        // What takes the place of a graph's task touches nothing before the graph runs.
        let touches = if stream.update.is_some() { Vec::new() } else { touches };
        let work = match work {
            work if stream.update.is_some() => state.renew(id, name, work)?,
            Work::Meet { comm, shares, .. } => state.book(comm, &shares, next)?,
            work => work,
        };
        let call = state.log.last();
        state.check_order(id, &touches);
        let stream = state.streams.get_mut(&id).ok_or_else(|| Fail::parameter("the stream is gone"))?;
        stream.queue.push_back(Task { call, name, work, touches });
        stream.submitted += 1;
        stream.polls = 0;
        let point = Point { stream: id, seq: stream.submitted };
        let schedule = &mut state.schedule;
        schedule.submitted += 1;
        schedule.credit = match schedule.adversary {
            Adversary::Late => 0,
            Adversary::Early => u64::MAX,
            Adversary::Seeded => mix(schedule.seed ^ 0xad5e, schedule.submitted) % 4,
        };
        self.changed.notify_all();
        // Who enqueues while a function of the program runs may be who that function waits for.
        while (state.schedule.credit > 0 || state.schedule.running) && !state.schedule.calling {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        Ok(point)
    }

    /// Runs what points depend on, until they are reached or time is up; whether they were.
    pub(crate) fn reach(
        &'static self,
        mut state: MutexGuard<'static, State>,
        goals: &[Point],
        timeout: Option<Duration>,
    ) -> Result<(MutexGuard<'static, State>, bool)> {
        refuse_on_scheduler()?;
        state.schedule.goals.extend_from_slice(goals);
        self.changed.notify_all();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let reached = loop {
            if goals.iter().all(|&goal| state.reached(goal)) {
                break true;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            state = match left {
                None => self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner),
                Some(Duration::ZERO) => break false,
                Some(left) => {
                    let waited = self.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
            };
        };
        for goal in goals {
            if let Some(at) = state.schedule.goals.iter().position(|other| other == goal) {
                state.schedule.goals.swap_remove(at);
            }
        }
        Ok((state, reached))
    }
}

/// Takes a piece of work as far as the lock is needed.
fn begin(state: &mut State, id: u64, task: Task) -> Step {
    let Some(stream) = state.streams.get(&id) else { return Step::Nothing(Ok(())) };
    // After the first error nothing computes any more; events are still reached, or whoever waits would hang.
    let skip = stream.has_stopped();
    match task.work {
        Work::Kernel(_) | Work::Copy(_) if skip => Step::Nothing(Ok(())),
        Work::Meet { rank, keys, .. } if skip => {
            state.miss_meetings(&keys, rank, "its stream stopped after an error");
            Step::Nothing(Ok(()))
        }
        Work::Meet { comm, rank, shares, keys } => match state.next_meeting(&keys) {
            None => Step::Nothing(state.leave_meetings(&keys, rank)),
            Some((key, parts)) => {
                Step::Meeting(Task { work: Work::Meet { comm, rank, shares, keys }, ..task }, key, parts)
            }
        },
        Work::Kernel(action) => {
            match state.faults.lost().map(KernelFault::Fails).or_else(|| state.faults.at_kernel()) {
                None => Step::Action(action),
                Some(KernelFault::Fails(fail)) => Step::Nothing(Err(fail)),
                Some(KernelFault::Hangs) => Step::Hang(Task { work: Work::Kernel(action), ..task }),
            }
        }
        Work::Copy(action) => match state.faults.lost() {
            None => Step::Action(action),
            Some(fail) => Step::Nothing(Err(fail)),
        },
        Work::Record { event, recording } => {
            let now = state.schedule.tick();
            if let Some(event) = state.events.get_mut(&event)
                && event.recordings == recording
            {
                event.reached = Some(now);
            }
            Step::Nothing(Ok(()))
        }
        Work::Wait { patience, .. } if stream.expired == Some(stream.done + 1) => {
            let text = format!("the event was not reached within {:?}", patience.unwrap_or_default());
            Step::Nothing(Err(Fail::new(code::RT_WAIT_TIMEOUT, text)))
        }
        Work::Wait { .. } | Work::Await { .. } => Step::Nothing(Ok(())),
        Work::Report { call, blocks } => match state.leave_report(id, call) {
            Ok(report) if blocks => Step::Stay(Task { work: Work::Await { report }, ..task }),
            other => Step::Nothing(other.map(drop)),
        },
        Work::Reset { event } => {
            if let Some(event) = state.events.get_mut(&event) {
                (event.latest, event.reached) = (None, None);
            }
            Step::Nothing(Ok(()))
        }
        Work::Host(host) => Step::Host(host),
        Work::Join { lanes, graph, .. } => Step::Nothing(state.end_run(&lanes, graph)),
    }
}

/// Functions that streams call run on the scheduler's own thread and may not use the driver.
fn refuse_on_scheduler() -> Result {
    match IS_SCHEDULER.get() {
        false => Ok(()),
        true => Err(Fail::parameter("a function that a stream calls must not call the driver")),
    }
}
