//! Captures: streams that record instead of running, and the rules of what may happen meanwhile.
//!
//! A capture begins on one stream. Others join by waiting for an event that was recorded in it, and have to be joined
//! back. What would make a graph depend on something outside of it is refused, some of it ending the capture.

use crate::call::thread;
use crate::error::{Fail, Result, code};
use crate::graph::{Graph, Group, Lane, Node, NodeWork, unjoined};
use crate::stream::{Stream, Work};
use crate::world::State;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// `aclmdlRICaptureMode`: on which threads functions that a graph cannot hold are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// On all.
    Global = 0,
    /// On the one that captures.
    ThreadLocal = 1,
    /// On none.
    Relaxed = 2,
}

impl Mode {
    pub(crate) fn new(mode: i32) -> Result<Self> {
        match mode {
            0 => Ok(Self::Global),
            1 => Ok(Self::ThreadLocal),
            2 => Ok(Self::Relaxed),
            _ => Err(Fail::parameter(format!("capture mode {mode} is unknown"))),
        }
    }
}

thread_local! {
    /// What this thread takes upon itself.
    static MODE: Cell<Mode> = const { Cell::new(Mode::Global) };
}

/// Sets this thread's mode, and gives the one before.
pub(crate) fn exchange_mode(mode: Mode) -> Mode {
    MODE.replace(mode)
}

/// Where a capture recorded an event: behind so many tasks of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    capture: u64,
    lane: usize,
    nodes: usize,
}

/// A capture that goes on.
pub(crate) struct Capture {
    /// The number of the graph that it becomes.
    pub(crate) graph: u64,
    origin: u64,
    device: usize,
    thread: u64,
    mode: Mode,
    /// Why it can only be ended.
    broken: Option<String>,
    pub(crate) lanes: Vec<Lane>,
    events: BTreeSet<u64>,
    /// Groups of tasks, by number.
    pub(crate) groups: Vec<(u64, Group)>,
    /// The group that is being recorded: lane and first task.
    pub(crate) open: Option<(usize, usize)>,
}

/// `aclmdlRICaptureStatus`.
pub(crate) const NOT_CAPTURED: i32 = 0;
const ACTIVE: i32 = 1;
const INVALIDATED: i32 = 2;

impl Capture {
    pub(crate) fn usable(&mut self) -> Result<&mut Self> {
        match &self.broken {
            None => Ok(self),
            Some(why) => {
                let text = format!("the capture became invalid: {why}; end it and begin anew");
                Err(Fail::new(code::RT_CAPTURE_INVALIDATED, text))
            }
        }
    }

    fn push(&mut self, lane: usize, limit: usize, node: Node) -> Result {
        if self.lanes.iter().map(|lane| lane.nodes.len()).sum::<usize>() >= limit {
            let text = format!("a graph holds {limit} tasks, and no more");
            return Err(Fail::new(code::RT_RESOURCE_ALLOCATION, text));
        }
        if let Some((open, _)) = self.open {
            if open != lane {
                let text = "a task on another captured stream, while a task group is being recorded";
                return Err(Fail::new(code::RT_TASK_GROUP_INTERRUPTED, text));
            }
            if !matches!(node.work, NodeWork::Kernel(_)) {
                let text = format!("{} in a task group, which holds operators only", node.name);
                return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, text));
            }
        }
        self.lanes[lane].nodes.push(node);
        Ok(())
    }
}

impl State {
    /// Begins a capture on a stream.
    pub(crate) fn begin_capture(&mut self, id: u64, mode: Mode) -> Result {
        if self.contexts.values().any(|context| context.default_stream == id) {
            return Err(implicit());
        }
        let stream = self.streams.get(&id).ok_or_else(|| Fail::parameter("the stream is gone"))?;
        if stream.capture.is_some() {
            return Err(captured("the stream is being captured already"));
        }
        if stream.update.is_some() {
            return Err(status("the stream updates a task group"));
        }
        let device = stream.device;
        self.room_for_stream(device)?;
        let (number, graph) = (self.number(), self.number());
        let (broken, lanes, events) = (None, vec![Lane::default()], BTreeSet::new());
        let (groups, open, thread) = (Vec::new(), None, thread());
        let capture =
            Capture { graph, origin: id, device, thread, mode, broken, lanes, events, groups, open };
        self.captures.insert(number, capture);
        self.put_in_capture(id, Some((number, 0)));
        Ok(())
    }

    /// Ends a capture: its graph.
    pub(crate) fn end_capture(&mut self, id: u64) -> Result<u64> {
        let Some((number, lane)) = self.capture_on(id) else {
            return Err(Fail::new(code::RT_STREAM_NOT_CAPTURED, "the stream is not being captured"));
        };
        let capture = self.captures.get(&number).ok_or_else(|| Fail::parameter("the capture is gone"))?;
        if lane != 0 {
            let text = "the stream joined the capture; end it on the stream that it began on";
            return Err(Fail::new(code::RT_CAPTURE_UNMATCHED, text));
        }
        if capture.mode != Mode::Relaxed && capture.thread != thread() {
            let text = format!("the capture began on thread {}, and its mode is not relaxed", capture.thread);
            return Err(Fail::new(code::RT_CAPTURE_WRONG_THREAD, text));
        }
        let Some(mut capture) = self.captures.remove(&number) else { return Ok(0) };
        self.streams
            .values_mut()
            .for_each(|stream| stream.capture = stream.capture.filter(|c| c.0 != number));
        self.events
            .values_mut()
            .for_each(|event| event.mark = event.mark.filter(|mark| mark.capture != number));
        capture.usable()?;
        if capture.open.is_some() {
            return Err(status("a task group was begun and not ended"));
        }
        let loose = unjoined(&capture.lanes);
        if !loose.is_empty() {
            let text = format!(
                "{} streams joined the capture and were not joined back: record an event behind their last task, \
                 and let the stream that the capture began on wait for it",
                loose.len()
            );
            return Err(Fail::new(code::RT_STREAM_UNJOINED, text));
        }
        let Capture { graph, device, lanes, events, groups, .. } = capture;
        self.groups.extend(groups.into_iter().map(|(group, place)| (group, (graph, place))));
        self.graphs.insert(graph, Graph { device, lanes, events, last: None });
        Ok(graph)
    }

    /// Status of a stream, and the graph it is recorded into.
    pub(crate) fn capture_status(&self, id: u64) -> (i32, Option<u64>) {
        let capture = self.capture_on(id).and_then(|(number, _)| self.captures.get(&number));
        match capture {
            None => (NOT_CAPTURED, None),
            Some(capture) if capture.broken.is_some() => (INVALIDATED, None),
            Some(capture) => (ACTIVE, Some(capture.graph)),
        }
    }

    pub(crate) fn capture_on(&self, id: u64) -> Option<(u64, usize)> {
        self.streams.get(&id).and_then(|stream| stream.capture)
    }

    fn put_in_capture(&mut self, id: u64, capture: Option<(u64, usize)>) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.capture = capture;
        }
    }

    /// Records work on a stream that is being captured.
    pub(crate) fn record(&mut self, id: u64, name: &'static str, work: Work) -> Result {
        let work = match work {
            Work::Kernel(action) => NodeWork::Kernel(Arc::new(Mutex::new(action))),
            Work::Copy(action) => NodeWork::Copy(action),
            Work::Host(host) => NodeWork::Host(host),
            Work::Record { event, .. } => NodeWork::Record { event },
            Work::Wait { event, .. } => NodeWork::Wait { event },
            Work::Reset { event } => NodeWork::Reset { event },
            Work::Meet { comm, shares, .. } => NodeWork::Meet { comm, shares },
            Work::Report { .. } | Work::Await { .. } => {
                return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, "a graph holds no aclrtLaunchCallback"));
            }
            Work::Join { .. } => {
                return Err(Fail::new(
                    code::RT_FEATURE_NOT_SUPPORT,
                    "a graph within a graph is not simulated",
                ));
            }
        };
        let (call, limit) = (self.log.last(), self.graph_tasks);
        let Some((number, lane)) = self.capture_on(id) else { return Ok(()) };
        let Some(capture) = self.captures.get_mut(&number) else { return Ok(()) };
        capture.usable()?.push(lane, limit, Node { call, name, work })
    }

    /// Records an event in a capture, if the stream is in one; whether it was.
    pub(crate) fn record_event(&mut self, id: u64, event: u64) -> Result<bool> {
        let Some((number, lane)) = self.capture_on(id) else {
            return self.refuse_captured_event(event).map(|()| false);
        };
        let Some(found) = self.events.get(&event) else { return Ok(true) };
        if found.is_external() {
            return self.record(id, "aclrtRecordEvent", Work::Record { event, recording: 0 }).map(|()| true);
        }
        if found.mark.is_some_and(|mark| mark.capture != number) {
            return Err(conflict());
        }
        let device = found.device;
        let is_new = !self.captures.get(&number).is_some_and(|capture| capture.events.contains(&event));
        if is_new {
            self.room_for_event(device)?;
        }
        let Some(capture) = self.captures.get_mut(&number) else { return Ok(true) };
        let capture = capture.usable()?;
        capture.events.insert(event);
        let mark = Mark { capture: number, lane, nodes: capture.lanes[lane].nodes.len() };
        if let Some(event) = self.events.get_mut(&event) {
            event.mark = Some(mark);
        }
        Ok(true)
    }

    /// Waits for an event where the stream or the event is in a capture; whether one was.
    pub(crate) fn wait_captured(&mut self, id: u64, event: u64) -> Result<bool> {
        let Some(found) = self.events.get(&event) else { return Ok(false) };
        let (mark, external) = (found.mark, found.is_external());
        let is_complete = found.latest.is_none() && found.renewable;
        let number = match (self.capture_on(id), mark) {
            (None, None) => return Ok(false),
            (Some(_), None) if external => {
                return self
                    .record(id, "aclrtStreamWaitEvent", Work::Wait { event, point: None, patience: None })
                    .map(|()| true);
            }
            // Never recorded, and of the kind that counts as complete then.
            (Some(_), None) if is_complete => return Ok(true),
            (Some(_), None) => {
                let text = "the event was recorded outside of the capture; a graph can wait for such an event only \
                            when it was made with ACL_EVENT_EXTERNAL";
                return Err(Fail::new(code::RT_CAPTURE_DEPENDENCY, text));
            }
            (Some((number, _)), Some(mark)) if mark.capture != number => return Err(conflict()),
            (_, Some(mark)) => mark.capture,
        };
        if self.contexts.values().any(|context| context.default_stream == id) {
            return Err(implicit());
        }
        let (call, limit) = (self.log.last(), self.graph_tasks);
        if self.capture_on(id).is_none() {
            let device = self.streams.get(&id).map_or(0, |stream| stream.device);
            self.room_for_stream(device)?;
            let Some(capture) = self.captures.get_mut(&number) else { return Ok(true) };
            capture.usable()?.lanes.push(Lane::default());
            let lane = capture.lanes.len() - 1;
            self.put_in_capture(id, Some((number, lane)));
        }
        let Some((_, lane)) = self.capture_on(id) else { return Ok(true) };
        let (Some(capture), Some(mark)) = (self.captures.get_mut(&number), mark) else { return Ok(true) };
        let work = NodeWork::Join { lane: mark.lane, nodes: mark.nodes };
        capture.usable()?.push(lane, limit, Node { call, name: "aclrtStreamWaitEvent", work })?;
        Ok(true)
    }

    /// Refuses what waits for a stream or looks at it, which would have to run what is only recorded; that ends its
    /// capture.
    pub(crate) fn refuse_captured_stream(&mut self, id: u64) -> Result {
        let Some((number, _)) = self.capture_on(id) else { return Ok(()) };
        let name = self.log.name(self.log.last()).unwrap_or("a call");
        if let Some(capture) = self.captures.get_mut(&number) {
            capture.broken.get_or_insert_with(|| format!("{name} was called on a stream in it"));
        }
        Err(captured("the stream is being captured, so its work does not run; end the capture first"))
    }

    /// The same for events that a capture has recorded.
    pub(crate) fn refuse_captured_event(&self, event: u64) -> Result {
        match self.events.get(&event).and_then(|event| event.mark) {
            None => Ok(()),
            Some(_) => {
                let text = "the event was recorded in a capture that goes on; end the capture first";
                Err(Fail::new(code::RT_EVENT_CAPTURED, text))
            }
        }
    }

    /// Refuses functions that no graph can hold, where the modes say so.
    pub(crate) fn refuse_while_capturing(&self) -> Result {
        let (me, mine) = (thread(), MODE.get());
        let refuses = |capture: &&Capture| match (capture.mode, capture.thread == me, mine) {
            (Mode::Relaxed, _, _) | (_, true, Mode::Relaxed) => false,
            (_, true, _) => true,
            (Mode::Global, false, mine) => mine == Mode::Global,
            (Mode::ThreadLocal, false, _) => false,
        };
        match self.captures.values().find(refuses) {
            None => Ok(()),
            Some(capture) => {
                let text = format!(
                    "not while thread {} captures in mode {:?}: use an asynchronous call with pinned memory, or \
                     aclmdlRICaptureThreadExchangeMode",
                    capture.thread, capture.mode
                );
                Err(Fail::new(code::RT_CAPTURE_MODE, text))
            }
        }
    }

    /// Forgets the captures that lose a stream.
    pub(crate) fn break_captures(&mut self, gone: impl Fn(&Stream) -> bool, why: &str) {
        let lost = self.streams.values().filter(|stream| gone(stream));
        let numbers: BTreeSet<u64> =
            lost.filter_map(|stream| stream.capture.map(|(number, _)| number)).collect();
        for number in numbers {
            let origin = self.captures.get(&number).map(|capture| capture.origin);
            if origin.is_some_and(|origin| self.streams.get(&origin).is_none_or(&gone)) {
                self.captures.remove(&number);
                self.streams.values_mut().for_each(|s| s.capture = s.capture.filter(|c| c.0 != number));
                self.events.values_mut().for_each(|e| e.mark = e.mark.filter(|mark| mark.capture != number));
            } else if let Some(capture) = self.captures.get_mut(&number) {
                capture.broken.get_or_insert_with(|| why.to_owned());
            }
        }
    }

    /// Streams and events of a device that graphs hold, and captures on their way to be graphs.
    pub(crate) fn held_by_graphs(&self, device: usize) -> (usize, usize) {
        let graphs = self.graphs.values().filter(|graph| graph.device == device);
        let captures = self.captures.values().filter(|capture| capture.device == device);
        let held = graphs.map(|graph| (graph.lanes.len(), graph.events.len()));
        let held = held.chain(captures.map(|capture| (capture.lanes.len(), capture.events.len())));
        held.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }
}

pub(crate) fn captured(text: &str) -> Fail {
    Fail::new(code::RT_STREAM_CAPTURED, text)
}

pub(crate) fn not_captured() -> Fail {
    Fail::new(code::RT_STREAM_NOT_CAPTURED, "the stream is not being captured")
}

pub(crate) fn status(text: &str) -> Fail {
    Fail::new(code::RT_TASK_GROUP_STATUS, text)
}

fn conflict() -> Fail {
    Fail::new(code::RT_CAPTURE_CONFLICT, "the event belongs to another capture than the stream")
}

fn implicit() -> Fail {
    Fail::new(code::RT_CAPTURE_IMPLICIT, "the default stream cannot be captured; make a stream for it")
}
