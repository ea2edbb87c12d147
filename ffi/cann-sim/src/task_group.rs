//! Groups of a graph's tasks: marked while they are captured, replaced between runs.
//!
//! An update is work like any other: it happens when the updating stream gets there, so a run that should see it has to
//! be ordered behind it.

use crate::capture::{captured, not_captured, status};
use crate::error::{Fail, Result, code};
use crate::graph::{Group, NodeWork};
use crate::stream::Work;
use crate::world::State;
use std::sync::{Arc, PoisonError};

/// A stream's work takes the place of a group's tasks, one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Update {
    /// The group's number.
    group: u64,
    /// How many tasks have been replaced.
    done: usize,
}

impl State {
    /// Begins a group of tasks on a stream that is being captured.
    pub(crate) fn begin_group(&mut self, id: u64) -> Result {
        let (number, lane) = self.capture_on(id).ok_or_else(not_captured)?;
        let Some(capture) = self.captures.get_mut(&number) else { return Err(not_captured()) };
        let capture = capture.usable()?;
        if capture.open.is_some() {
            return Err(status("a task group is being recorded already"));
        }
        capture.open = Some((lane, capture.lanes[lane].nodes.len()));
        Ok(())
    }

    /// Ends a group: its number.
    pub(crate) fn end_group(&mut self, id: u64) -> Result<u64> {
        let (number, lane) = self.capture_on(id).ok_or_else(not_captured)?;
        let group = self.number();
        let Some(capture) = self.captures.get_mut(&number) else { return Err(not_captured()) };
        let capture = capture.usable()?;
        match capture.open {
            Some((open, first)) if open == lane => {
                let place = Group { lane, first, count: capture.lanes[lane].nodes.len() - first };
                capture.open = None;
                capture.groups.push((group, place));
                Ok(group)
            }
            _ => Err(status("no task group was begun on this stream")),
        }
    }

    /// From now on, work on a stream takes the place of a group's tasks.
    pub(crate) fn begin_update(&mut self, id: u64, group: u64) -> Result {
        if self.capture_on(id).is_some() {
            return Err(captured("a stream that is being captured cannot update a task group"));
        }
        if self.captures.values().any(|capture| capture.groups.iter().any(|(known, _)| *known == group)) {
            let text = "the graph of the task group is still being captured";
            return Err(Fail::new(code::RT_MODEL_CAPTURED, text));
        }
        if !self.groups.contains_key(&group) {
            let text = "the graph of the task group was destroyed";
            return Err(Fail::new(code::RT_INVALID_HANDLE, text));
        }
        if self.streams.values().any(|stream| stream.update.is_some_and(|update| update.group == group)) {
            return Err(status("the task group is being updated already"));
        }
        match self.streams.get_mut(&id) {
            Some(stream) if stream.update.is_none() => stream.update = Some(Update { group, done: 0 }),
            _ => return Err(status("the stream updates another task group")),
        }
        Ok(())
    }

    /// Work that puts other work in the place of the group's next task, when its stream gets there.
    pub(crate) fn renew(&mut self, id: u64, name: &'static str, work: Work) -> Result<Work> {
        let Some(update) = self.streams.get(&id).and_then(|stream| stream.update) else { return Ok(work) };
        let Work::Kernel(action) = work else {
            let text = format!("{name} on a stream that updates a task group; only operators can be updated");
            return Err(Fail::new(code::RT_FEATURE_NOT_SUPPORT, text));
        };
        let Some((graph, place)) = self.groups.get(&update.group) else {
            return Err(status("the graph of the task group was destroyed"));
        };
        let lane =
            self.graphs.get(graph).map(|graph| &graph.lanes[place.lane].nodes[place.first..][..place.count]);
        let Some(node) = lane.and_then(|nodes| nodes.get(update.done)) else {
            return Err(Fail::parameter(format!(
                "{name} is more than the {} tasks of the group",
                place.count
            )));
        };
        if node.name != name {
            let text = format!("{name} in the place of {}, task {} of the group", node.name, update.done);
            return Err(Fail::parameter(text));
        }
        let NodeWork::Kernel(slot) = &node.work else { return Err(status("no operator in a task group")) };
        let slot = slot.clone();
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.update = Some(Update { done: update.done + 1, ..update });
        }
        Ok(Work::Copy(Arc::new(move |_| {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = action.clone();
            Ok(())
        })))
    }

    /// Ends an update, which has to have replaced every task.
    pub(crate) fn end_update(&mut self, id: u64) -> Result {
        let update = self.streams.get_mut(&id).and_then(|stream| stream.update.take());
        let update = update.ok_or_else(|| status("the stream updates no task group"))?;
        let count = self.groups.get(&update.group).map_or(0, |(_, place)| place.count);
        match update.done == count {
            true => Ok(()),
            false => Err(status(&format!("{} of the group's {count} tasks were updated", update.done))),
        }
    }
}
