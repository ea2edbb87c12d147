//! Streams and events: queues of work, and points in them.

use crate::capture::Mark;
use crate::collective::{Key, Place, Share};
use crate::error::{Fail, Result, code};
use crate::order::Touch;
use crate::task_group::Update;
use crate::world::{State, World};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A place in the order of a stream: its `seq`-th piece of work, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) stream: u64,
    pub(crate) seq: u64,
}

/// What a piece of work does when its turn comes; in a graph that is often.
pub(crate) type Action = Arc<dyn Fn(&'static World) -> Result + Send + Sync>;

/// A host function that a stream calls.
#[derive(Clone, Copy)]
pub(crate) struct HostCall {
    pub(crate) function: unsafe extern "C" fn(*mut c_void),
    pub(crate) argument: *mut c_void,
}

// SAFETY: the caller of aclrtLaunchHostFunc promises that its argument may be used on another thread.
unsafe impl Send for HostCall {}

/// A piece of work.
pub(crate) enum Work {
    /// Computes; faults may be planned for it.
    Kernel(Action),
    /// Copies or fills.
    Copy(Action),
    /// Marks a point for an event; `recording` tells a later record of the same event apart.
    Record { event: u64, recording: u64 },
    /// Goes on when the point is reached; `None`: when the event has been recorded for the first time. Fails where
    /// that takes too long.
    Wait { event: u64, point: Option<Point>, patience: Option<Duration> },
    /// Makes an event one that was never recorded.
    Reset { event: u64 },
    /// Calls a function of the program.
    Host(HostCall),
    /// Leaves a function of the program for the thread that the stream's reports go to; it may wait for its end.
    Report { call: HostCall, blocks: bool },
    /// Waits for the end of a function that was left so.
    Await { report: u64 },
    /// Ends a run of a graph once its lanes have reached the point, and tells what they met.
    Join { point: Point, lanes: Vec<u64>, graph: u64 },
    /// Takes part in meetings with other streams' work. The keys are given when it is enqueued.
    Meet { comm: u64, rank: u32, shares: Arc<[(Place, Share)]>, keys: Vec<Key> },
}

impl Work {
    /// Whether the program is called, which it may wait for without asking.
    pub(crate) fn is_call(&self) -> bool {
        matches!(self, Self::Host(_) | Self::Report { .. })
    }
}

/// A piece of work, and where it came from.
pub(crate) struct Task {
    /// The call that enqueued it.
    pub(crate) call: u64,
    /// What messages call it.
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    /// Device memory that it reads or writes, as far as that is known.
    pub(crate) touches: Vec<Touch>,
}

/// An in-order queue.
pub(crate) struct Stream {
    pub(crate) context: u64,
    pub(crate) device: usize,
    pub(crate) queue: VecDeque<Task>,
    /// Pieces of work enqueued so far, and done so far.
    pub(crate) submitted: u64,
    pub(crate) done: u64,
    /// Its head never ends.
    pub(crate) hung: bool,
    pub(crate) stop_on_error: bool,
    /// What went wrong first, and which piece of work it was, until it has been told (or for good, where the stream stops on errors).
    pub(crate) error: Option<(Fail, u64)>,
    /// How often it was asked in vain whether it is done.
    pub(crate) polls: u64,
    /// It is a lane of a graph's run, not a stream of the program.
    pub(crate) is_lane: bool,
    /// The capture that records what is enqueued here, and the lane it becomes.
    pub(crate) capture: Option<(u64, usize)>,
    /// When its head began to wait, and which piece of work that is; and the one that has waited too long.
    pub(crate) waiting: Option<(u64, Instant)>,
    pub(crate) expired: Option<u64>,
    /// The group of a graph's tasks that what is enqueued here takes the place of.
    pub(crate) update: Option<Update>,
}

impl Stream {
    pub(crate) fn new(context: u64, device: usize) -> Self {
        Self {
            context,
            device,
            queue: VecDeque::new(),
            submitted: 0,
            done: 0,
            hung: false,
            stop_on_error: false,
            error: None,
            polls: 0,
            is_lane: false,
            capture: None,
            waiting: None,
            expired: None,
            update: None,
        }
    }

    /// Books a failure of the piece of work that was done last.
    pub(crate) fn fail(&mut self, fail: Fail) {
        self.error.get_or_insert((fail, self.done));
    }

    /// Whether it computes nothing any more since an error.
    pub(crate) fn has_stopped(&self) -> bool {
        self.stop_on_error && self.error.is_some()
    }

    /// What a synchronise has to tell.
    pub(crate) fn verdict(&mut self) -> Result {
        let error = if self.stop_on_error { self.error.clone() } else { self.error.take() };
        error.map_or(Ok(()), |(fail, _)| Err(fail))
    }

    /// Drops everything that has not begun; gives the lanes of runs that never end now.
    pub(crate) fn abort(&mut self) -> Vec<u64> {
        let lanes = self.pending_lanes();
        self.queue.clear();
        self.done = self.submitted;
        self.hung = false;
        self.fail(Fail::new(code::RT_STREAM_ABORTED, "the stream was aborted"));
        lanes
    }

    /// What the stream has yet to do, with its place in the stream's order.
    pub(crate) fn numbered(&self) -> impl DoubleEndedIterator<Item = (u64, &Task)> {
        // From the last one: while the head is being run it is out of the queue, and not done.
        let first = self.submitted + 1 - (self.queue.len() as u64).min(self.submitted);
        self.queue.iter().enumerate().map(move |(at, task)| (first + at as u64, task))
    }

    /// Lanes of the runs that the stream has yet to end.
    pub(crate) fn pending_lanes(&self) -> Vec<u64> {
        let lanes = self.queue.iter().filter_map(|task| match &task.work {
            Work::Join { lanes, .. } => Some(lanes.clone()),
            _ => None,
        });
        lanes.flatten().collect()
    }
}

impl State {
    /// Whether a device can have one more stream; graphs hold one for each of their lanes.
    pub(crate) fn room_for_stream(&self, device: usize) -> Result {
        let alive = self.streams.values().filter(|stream| stream.device == device && !stream.is_lane).count();
        let own = self.contexts.values().filter(|context| context.device == device).count();
        let most = self.profile.streams;
        if alive.saturating_sub(own) + self.held_by_graphs(device).0 < most {
            return Ok(());
        }
        let text = format!("device {device} has {most} streams, and no more; graphs hold one for each lane");
        Err(Fail::new(code::RT_NO_STREAM_RESOURCE, text))
    }

    /// Whether a device can have one more event; graphs hold those that were recorded in them.
    pub(crate) fn room_for_event(&self, device: usize) -> Result {
        let alive = self.events.values().filter(|event| event.device == device).count();
        let most = self.profile.events;
        if alive + self.held_by_graphs(device).1 < most {
            return Ok(());
        }
        let text =
            format!("device {device} has {most} events, and no more; graphs hold those recorded in them");
        Err(Fail::new(code::RT_NO_EVENT_RESOURCE, text))
    }
}

/// A point that others may wait for.
pub(crate) struct Event {
    pub(crate) context: u64,
    pub(crate) device: usize,
    pub(crate) flags: u32,
    /// Made by `aclrtCreateEventExWithFlag`: may be recorded again, and counts as complete before the first time.
    pub(crate) renewable: bool,
    /// Where it was recorded last.
    pub(crate) latest: Option<Point>,
    /// How often it was recorded.
    pub(crate) recordings: u64,
    /// When the latest recording was reached, in microseconds of device time.
    pub(crate) reached: Option<u64>,
    pub(crate) polls: u64,
    /// Where a capture recorded it, while that capture goes on.
    pub(crate) mark: Option<Mark>,
}

impl Event {
    /// Whether graphs treat it as something outside of them: its records and waits are tasks of theirs.
    pub(crate) fn is_external(&self) -> bool {
        self.flags & EVENT_EXTERNAL != 0
    }
}

/// `ACL_EVENT_SYNC`: streams may wait for it.
pub(crate) const EVENT_SYNC: u32 = 0x1;
/// `ACL_EVENT_TIME_LINE`: it keeps the time.
pub(crate) const EVENT_TIME_LINE: u32 = 0x8;
/// `ACL_EVENT_EXTERNAL`: graphs meet the world outside in it.
const EVENT_EXTERNAL: u32 = 0x20;
