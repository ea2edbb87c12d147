//! Streams and events: queues of work, and points in them.

use crate::error::{Fail, Result, code};
use crate::world::World;
use std::collections::VecDeque;
use std::ffi::c_void;

/// A place in the order of a stream: its `seq`-th piece of work, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) stream: u64,
    pub(crate) seq: u64,
}

/// What a piece of work does when its turn comes.
pub(crate) type Action = Box<dyn FnOnce(&'static World) -> Result + Send>;

/// A host function that a stream calls.
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
    /// Goes on when the point is reached; `None`: when the event has been recorded for the first time.
    Wait { event: u64, point: Option<Point> },
    /// Makes an event one that was never recorded.
    Reset { event: u64 },
    /// Calls a function of the program.
    Host(HostCall),
}

/// A piece of work, and where it came from.
pub(crate) struct Task {
    /// The call that enqueued it.
    pub(crate) call: u64,
    /// What messages call it.
    pub(crate) name: &'static str,
    pub(crate) work: Work,
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
        }
    }

    /// Books a failure of the piece of work that was done last.
    pub(crate) fn fail(&mut self, fail: Fail) {
        self.error.get_or_insert((fail, self.done));
    }

    /// What a synchronise has to tell.
    pub(crate) fn verdict(&mut self) -> Result {
        let error = if self.stop_on_error { self.error.clone() } else { self.error.take() };
        error.map_or(Ok(()), |(fail, _)| Err(fail))
    }

    /// Drops everything that has not begun.
    pub(crate) fn abort(&mut self) {
        self.queue.clear();
        self.done = self.submitted;
        self.hung = false;
        self.fail(Fail::new(code::RT_STREAM_ABORTED, "the stream was aborted"));
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
}

/// `ACL_EVENT_SYNC`: streams may wait for it.
pub(crate) const EVENT_SYNC: u32 = 0x1;
/// `ACL_EVENT_TIME_LINE`: it keeps the time.
pub(crate) const EVENT_TIME_LINE: u32 = 0x8;
