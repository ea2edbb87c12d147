//! Graphs: recorded work, and its runs.
//!
//! A lane is what one stream recorded, in order; lanes wait for each other where streams waited for events. A run puts
//! every lane on a queue of its own, so branches of a graph meet the same adversary as streams do. Addresses, scalars
//! and shapes are those of the recording; only tasks of a group may be replaced later.

use crate::collective::{Place, Share};
use crate::error::{Fail, Result, code};
use crate::stream::{Action, HostCall, Point, Stream, Task, Work};
use crate::world::State;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The computation of a task, which a group's update may replace.
pub(crate) type Slot = Arc<Mutex<Action>>;

/// What a recorded task does.
pub(crate) enum NodeWork {
    Kernel(Slot),
    Copy(Action),
    Host(HostCall),
    /// A part in collectives, in their turn with each run.
    Meet {
        comm: u64,
        shares: Arc<[(Place, Share)]>,
    },
    /// Goes on when the first `nodes` tasks of another lane are done.
    Join {
        lane: usize,
        nodes: usize,
    },
    /// Marks an event outside of the graph.
    Record {
        event: u64,
    },
    /// Waits for an event outside of the graph.
    Wait {
        event: u64,
    },
    /// Takes a mark back.
    Reset {
        event: u64,
    },
}

/// A recorded task.
pub(crate) struct Node {
    /// The call that recorded it.
    pub(crate) call: u64,
    /// What messages call it.
    pub(crate) name: &'static str,
    pub(crate) work: NodeWork,
}

/// What one stream recorded, in order.
#[derive(Default)]
pub(crate) struct Lane {
    pub(crate) nodes: Vec<Node>,
}

/// Tasks of one lane that may be replaced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub(crate) lane: usize,
    pub(crate) first: usize,
    pub(crate) count: usize,
}

/// A graph that was recorded to its end.
pub(crate) struct Graph {
    pub(crate) device: usize,
    /// The first is the one that recording began on; the others were joined back to it.
    pub(crate) lanes: Vec<Lane>,
    /// The events that its recording took, each of which the device has one less of.
    pub(crate) events: BTreeSet<u64>,
    /// Where its latest run ends.
    pub(crate) last: Option<Point>,
}

impl Graph {
    pub(crate) fn tasks(&self) -> usize {
        self.lanes.iter().map(|lane| lane.nodes.len()).sum()
    }
}

/// The lanes that the first one's end does not depend on to their own end.
pub(crate) fn unjoined(lanes: &[Lane]) -> Vec<usize> {
    let mut covered = vec![0; lanes.len()];
    let mut open = vec![(0, lanes.first().map_or(0, |lane| lane.nodes.len()))];
    while let Some((lane, until)) = open.pop() {
        let from = covered[lane];
        covered[lane] = until.max(from);
        for node in lanes[lane].nodes.iter().take(until).skip(from) {
            if let NodeWork::Join { lane, nodes } = node.work {
                open.push((lane, nodes));
            }
        }
    }
    (1..lanes.len()).filter(|&lane| covered[lane] < lanes[lane].nodes.len()).collect()
}

impl State {
    /// Queues for a run of a graph that begins when `after` is reached; the work that ends it.
    pub(crate) fn begin_run(
        &mut self,
        id: u64,
        graph: &Graph,
        after: Option<Point>,
        on: u64,
    ) -> Result<Work> {
        let origin = self.streams.get(&on).ok_or_else(|| Fail::parameter("the stream is gone"))?;
        let (context, device, stop_on_error) = (origin.context, origin.device, origin.stop_on_error);
        let numbers: Vec<u64> = graph.lanes.iter().map(|_| self.number()).collect();
        // A run begins behind its stream and behind the run before it.
        let before: Vec<Point> = after.into_iter().chain(graph.last).collect();
        for (lane, &number) in graph.lanes.iter().zip(&numbers) {
            let waits = before.iter().map(|&point| {
                let work = Work::Wait { event: 0, point: Some(point), patience: None };
                Task { call: self.log.last(), name: "aclmdlRIExecuteAsync", work, touches: Vec::new() }
            });
            let mut stream = Stream::new(context, device);
            (stream.is_lane, stream.stop_on_error) = (true, stop_on_error);
            stream.queue = waits.collect();
            for node in &lane.nodes {
                let seq = stream.queue.len() as u64 + 1;
                let here = Point { stream: number, seq };
                let work = self.instance(node, here, &numbers, before.len());
                stream.queue.push_back(Task { call: node.call, name: node.name, work, touches: Vec::new() });
            }
            stream.submitted = stream.queue.len() as u64;
            self.streams.insert(number, stream);
        }
        let last = numbers.first().and_then(|first| self.streams.get(first).map(|stream| (first, stream)));
        let point = last
            .map_or(Point { stream: on, seq: 0 }, |(&stream, lane)| Point { stream, seq: lane.submitted });
        Ok(Work::Join { point, lanes: numbers, graph: id })
    }

    /// A recorded task in one run; `lead` pieces of work stand before the first task of each lane.
    fn instance(&mut self, node: &Node, here: Point, lanes: &[u64], lead: usize) -> Work {
        match &node.work {
            NodeWork::Kernel(slot) => {
                let slot = slot.clone();
                Work::Kernel(Arc::new(move |world| {
                    let action = slot.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    action(world)
                }))
            }
            NodeWork::Copy(action) => Work::Copy(action.clone()),
            NodeWork::Host(host) => Work::Host(*host),
            NodeWork::Join { lane, nodes } => Work::Wait {
                event: 0,
                point: Some(Point { stream: lanes[*lane], seq: (lead + nodes) as u64 }),
                patience: None,
            },
            NodeWork::Meet { comm, shares } => match self.book(*comm, shares, here) {
                Ok(work) => work,
                // What does not fit shows where the collective would have run.
                Err(fail) => Work::Copy(Arc::new(move |_| Err(fail.clone()))),
            },
            NodeWork::Record { event } => match self.events.get_mut(event) {
                Some(found) => {
                    found.recordings += 1;
                    (found.latest, found.reached, found.polls) = (Some(here), None, 0);
                    Work::Record { event: *event, recording: found.recordings }
                }
                None => Work::Record { event: *event, recording: 0 },
            },
            NodeWork::Wait { event } => Work::Wait { event: *event, point: None, patience: None },
            NodeWork::Reset { event } => Work::Reset { event: *event },
        }
    }

    /// Books the end of a run: the first failure on any lane.
    pub(crate) fn end_run(&mut self, lanes: &[u64], graph: u64) -> Result {
        let failures = lanes.iter().filter_map(|lane| self.streams.remove(lane)?.error);
        let failure = failures.min_by_key(|(_, at)| *at).map(|(fail, _)| fail);
        if let Some(graph) = self.graphs.get_mut(&graph)
            && graph
                .last
                .is_some_and(|last| self.streams.get(&last.stream).is_none_or(|s| s.done + 1 >= last.seq))
        {
            graph.last = None;
        }
        failure.map_or(Ok(()), Err)
    }

    /// Drops lanes of runs that nothing will end any more.
    pub(crate) fn drop_lanes(&mut self, lanes: &[u64]) {
        for lane in lanes {
            self.streams.remove(lane);
        }
        self.find_orphans();
    }

    /// Whether a run of a graph has not ended yet.
    pub(crate) fn is_running(&self, graph: &Graph) -> bool {
        graph.last.is_some_and(|last| !self.reached(last))
    }

    /// The graph behind a number, which lives on this device.
    pub(crate) fn graph_of(&self, id: u64, device: usize) -> Result<&Graph> {
        match self.graphs.get(&id) {
            Some(graph) if graph.device == device => Ok(graph),
            Some(graph) => {
                let text = format!("the graph is of device {}, and device {device} is current", graph.device);
                Err(Fail::new(code::RT_STREAM_CONTEXT, text))
            }
            None if self.captures.values().any(|capture| capture.graph == id) => {
                let text = "the graph is still being captured; call aclmdlRICaptureEnd first";
                Err(Fail::new(code::RT_MODEL_CAPTURED, text))
            }
            None => Err(Fail::new(code::RT_INVALID_HANDLE, "the graph was destroyed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(lane: usize, nodes: usize) -> Node {
        Node { call: 0, name: "test", work: NodeWork::Join { lane, nodes } }
    }

    fn task() -> Node {
        Node { call: 0, name: "test", work: NodeWork::Copy(Arc::new(|_| Ok(()))) }
    }

    fn lane(nodes: Vec<Node>) -> Lane {
        Lane { nodes }
    }

    #[test]
    fn a_lane_is_joined_when_the_first_depends_on_its_last_task() {
        let side = || lane(vec![join(0, 1), task()]);
        let none: [usize; 0] = [];
        assert_eq!(unjoined(&[lane(vec![task()])]), none);
        assert_eq!(unjoined(&[lane(vec![task()]), side()]), [1]);
        assert_eq!(unjoined(&[lane(vec![task(), join(1, 1)]), side()]), [1]);
        assert_eq!(unjoined(&[lane(vec![task(), join(1, 2)]), side()]), none);
        // Through a lane between, and not through one that is joined too early.
        let chain = |until| [lane(vec![task(), join(1, until)]), lane(vec![join(0, 1), join(2, 2)]), side()];
        assert_eq!(unjoined(&chain(2)), none);
        assert_eq!(unjoined(&chain(1)), [1, 2]);
    }
}
