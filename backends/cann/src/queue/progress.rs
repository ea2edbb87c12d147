//! What is known of a stream's work: how far it has come, what it failed at, and which host memory it still uses.
//!
//! Positions count what was enqueued on the stream, recordings and waits included, from 1. The driver tells of failures only where one waits; what is
//! known then is that everything up to the last good position is good, and that something behind it is not.

use super::graph::CannGraph;
use crate::comm::Engagement;
use crate::memory::PinnedBytes;
use crate::repeat::Planned;
use portolan_core::{Fault, HostBuffer, Launch};
use portolan_ops::{OpError, OpName};
use std::collections::VecDeque;
use std::sync::Arc;

/// A piece of work that is not known to be done.
struct Pending {
    position: u64,
    seq: u64,
    op: OpName,
}

/// A part of a buffer.
pub(crate) struct Stretch {
    pub(crate) host: HostBuffer,
    pub(crate) start: usize,
    pub(crate) bytes: usize,
}

/// What work uses that is not the device's memory.
pub(crate) enum Held {
    /// Pinned memory of a copy, and where its bytes go when the copy is done.
    Staged { pinned: PinnedBytes, destination: Option<Stretch> },
    /// The group of a collective.
    Engaged(Engagement),
    /// A graph that runs.
    Graph(Arc<CannGraph>),
    /// An executor that is not launched any more.
    Planned(Planned),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Progress {
    enqueued: u64,
    done: u64,
    pending: VecDeque<Pending>,
    held: VecDeque<(u64, Held)>,
    fault: Option<Fault>,
}

impl Progress {
    /// Books work that was enqueued for a submission.
    pub(crate) fn enqueue(&mut self, launch: &Launch<'_>) {
        self.enqueued += 1;
        let (position, seq, op) = (self.enqueued, launch.seq(), launch.op_name());
        self.pending.push_back(Pending { position, seq, op });
    }

    /// Books what computes nothing and cannot fail by itself: a recording, a wait. Gives its position.
    pub(crate) fn enqueue_point(&mut self) -> u64 {
        self.enqueued += 1;
        self.enqueued
    }

    /// Books what the latest work uses.
    pub(crate) fn hold(&mut self, held: Held) {
        self.held.push_back((self.enqueued, held));
    }

    /// Whether a collective is under way, and why its group has ended, if it has.
    pub(crate) fn engaged(&self) -> (bool, Option<OpError>) {
        let engagements = self.held.iter().filter_map(|(_, held)| match held {
            Held::Engaged(engagement) => Some(engagement),
            _ => None,
        });
        let (mut any, mut ended) = (false, None);
        for engagement in engagements {
            any = true;
            ended = ended.or_else(|| engagement.ended());
        }
        (any, ended)
    }

    /// Whether a copy is under way.
    pub(crate) fn copies(&self) -> bool {
        self.held.iter().any(|(_, held)| matches!(held, Held::Staged { .. }))
    }

    /// The position of the latest work.
    pub(crate) fn enqueued(&self) -> u64 {
        self.enqueued
    }

    /// Whether everything up to a position is known to be done.
    pub(crate) fn has_passed(&self, position: u64) -> bool {
        self.done >= position
    }

    /// The first fault that is known.
    pub(crate) fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Books that everything up to a position is done, well or, with an error, not all of it; gives what is free
    /// now.
    pub(crate) fn pass(&mut self, position: u64, error: Option<OpError>) -> Vec<Held> {
        if let Some(error) = error
            && self.fault.is_none()
        {
            let suspects: Vec<&Pending> =
                self.pending.iter().take_while(|work| work.position <= position).collect();
            let last = suspects.last().map_or(0, |work| work.seq);
            let names = named(&suspects);
            let (seq, op) = match self.pending.front() {
                Some(first) => (first.seq, first.op.clone()),
                None => (last, "an earlier operator".into()),
            };
            self.fault = Some(Fault { seq, op, source: Arc::new(between(error, seq, last, &names)) });
        }
        self.done = self.done.max(position);
        while self.pending.front().is_some_and(|work| work.position <= self.done) {
            self.pending.pop_front();
        }
        let free = self.held.iter().take_while(|(position, _)| *position <= self.done).count();
        self.held.drain(..free).map(|(_, held)| held).collect()
    }
}

/// The operators that may have failed, each once; of many, the first ones.
fn named(suspects: &[&Pending]) -> String {
    const MOST: usize = 8;
    let mut names: Vec<String> = Vec::new();
    for work in suspects {
        let name = work.op.to_string();
        match names.len() {
            _ if names.contains(&name) => {}
            MOST => {
                names.push("…".into());
                break;
            }
            _ => names.push(name),
        }
    }
    names.join(", ")
}

/// The error with the submissions it may have come from, where they are several.
fn between(error: OpError, first: u64, last: u64, names: &str) -> OpError {
    match error {
        OpError::Driver { device, call, code, name, message } if first < last => {
            let message = format!("between submissions {first} and {last} ({names}): {message}");
            OpError::Driver { device, call, code, name, message }
        }
        other => other,
    }
}
