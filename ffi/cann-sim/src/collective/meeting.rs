//! Meetings: pieces of work on several streams that happen together.

use super::exchange::{Exchange, exchange};
use super::hccl;
use crate::aclnn::{Run, Together};
use crate::error::{Fail, Result, code};
use crate::stream::{Point, Stream, Work};
use crate::world::{State, World};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Which meeting: the turns of a communicator's collectives, and of each pair of its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    All { clique: u64, turn: u64 },
    Pair { clique: u64, from: u32, to: u32, turn: u64 },
}

/// Whom a share is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Every rank.
    All,
    /// This rank sends to another.
    To(u32),
    /// This rank receives from another.
    From(u32),
}

/// What a rank brings to a meeting.
#[derive(Clone)]
pub(crate) enum Share {
    Exchange(Exchange),
    /// Its side of an operator, and what maps its tensors.
    Operator {
        name: &'static str,
        together: Arc<Together>,
        prepare: Arc<Prepare>,
    },
}

type Prepare = dyn Fn(&'static World) -> Result<Run> + Send + Sync;

impl Share {
    fn name(&self) -> &'static str {
        match self {
            Self::Exchange(exchange) => exchange.name,
            Self::Operator { name, .. } => name,
        }
    }

    /// Why two shares do not fit together.
    fn differs(&self, me: u32, other: &Share, peer: u32) -> Option<String> {
        match (self, other) {
            (Self::Exchange(mine), Self::Exchange(theirs)) => mine.differs(me, theirs, peer),
            _ if self.name() != other.name() => Some(format!("{} meets {}", self.name(), other.name())),
            (Self::Operator { together: mine, .. }, Self::Operator { together: theirs, .. }) => {
                let differ = mine.agreed != theirs.agreed;
                differ.then(|| format!("attributes {:?} meet {:?}", mine.agreed, theirs.agreed))
            }
            _ => None,
        }
    }
}

/// A rank's part in a meeting.
struct Part {
    point: Point,
    /// The call that enqueued it.
    call: u64,
    share: Share,
    /// Why it never comes.
    absent: Option<String>,
    /// It comes so much later than it could.
    delay: Option<Duration>,
    /// When its stream got there.
    arrived: Option<Instant>,
}

/// A meeting.
pub(crate) struct Meeting {
    size: usize,
    parts: BTreeMap<u32, Part>,
    outcome: Option<Result>,
}

/// How far a meeting is.
pub(crate) enum Stage {
    Over,
    Runnable,
    /// It needs these points first.
    Waits(Vec<Point>),
}

impl State {
    /// A rank's part in its next meetings, as the piece of work at a point.
    pub(crate) fn book(&mut self, comm: u64, shares: &Arc<[(Place, Share)]>, point: Point) -> Result<Work> {
        let gone = || super::wrong("the communicator was destroyed");
        let call = self.log.last();
        let found = self.comms.get(&comm).ok_or_else(gone)?;
        let (clique, rank, size) =
            (found.clique, found.rank, self.cliques.get(&found.clique).map_or(1, |c| c.size));
        let mut comm_after = found.turns.clone();
        let mut keys = Vec::new();
        for (place, share) in shares.iter() {
            let turn = comm_after.next(*place);
            let key = match *place {
                Place::All => Key::All { clique, turn },
                Place::To(to) => Key::Pair { clique, from: rank, to, turn },
                Place::From(from) => Key::Pair { clique, from, to: rank, turn },
            };
            let parts = self.meetings.get(&key).into_iter().flat_map(|meeting| &meeting.parts);
            for (&peer, part) in parts {
                if let Some(how) = share.differs(rank, &part.share, peer) {
                    return Err(super::wrong(format!(
                        "rank {rank} does not fit rank {peer}'s {} (call {}): {how}",
                        part.share.name(),
                        part.call
                    )));
                }
            }
            keys.push(key);
        }
        if let Some(found) = self.comms.get_mut(&comm) {
            found.turns = comm_after;
        }
        let (absent, delay) = self.faults.at_collective(rank);
        for (key, (place, share)) in keys.iter().zip(shares.iter()) {
            let size = if *place == Place::All { size as usize } else { 2 };
            let meeting = self.meetings.entry(*key);
            let meeting = meeting.or_insert_with(|| Meeting { size, parts: BTreeMap::new(), outcome: None });
            let (share, absent) = (share.clone(), absent.clone());
            meeting.parts.insert(rank, Part { point, call, share, absent, delay, arrived: None });
        }
        Ok(Work::Meet { comm, rank, shares: shares.clone(), keys })
    }

    /// How far a meeting is.
    fn stage(&self, key: &Key) -> Stage {
        let Some(meeting) = self.meetings.get(key).filter(|meeting| meeting.outcome.is_none()) else {
            return Stage::Over;
        };
        // A stream that has stopped never gets there, whether or not it was seen to.
        let stopped = |part: &Part| self.streams.get(&part.point.stream).is_some_and(Stream::has_stopped);
        let misses = |part: &Part| part.absent.is_some() || stopped(part);
        if meeting.parts.len() < meeting.size || meeting.parts.values().any(misses) {
            return Stage::Waits(Vec::new());
        }
        let points = meeting.parts.values().map(|part| Point { seq: part.point.seq - 1, ..part.point });
        let points: Vec<Point> = points.filter(|&point| !self.reached(point)).collect();
        let late = meeting.parts.values().any(|part| match (part.delay, part.arrived) {
            (None, _) => false,
            (Some(delay), arrived) => arrived.is_none_or(|arrived| arrived.elapsed() < delay),
        });
        if points.is_empty() && !late { Stage::Runnable } else { Stage::Waits(points) }
    }

    /// What a piece of work in several meetings waits for; `None` when it can go on in one, or is done in all.
    pub(crate) fn meetings_await(&self, keys: &[Key]) -> Option<Vec<Point>> {
        let (mut points, mut over) = (Vec::new(), true);
        for key in keys {
            match self.stage(key) {
                Stage::Over => {}
                Stage::Runnable => return None,
                Stage::Waits(needed) => {
                    over = false;
                    points.extend(needed);
                }
            }
        }
        (!over).then_some(points)
    }

    /// A meeting that can take place now, with what everybody brings.
    pub(crate) fn next_meeting(&self, keys: &[Key]) -> Option<(Key, Vec<(u32, Share)>)> {
        let key = keys.iter().find(|key| matches!(self.stage(key), Stage::Runnable))?;
        let parts = &self.meetings.get(key)?.parts;
        Some((*key, parts.iter().map(|(&rank, part)| (rank, part.share.clone())).collect()))
    }

    /// Books what came of a meeting.
    pub(crate) fn end_meeting(&mut self, key: &Key, outcome: Result) {
        let asynchronous = outcome.as_ref().err().map(|fail| match fail.code {
            code::RT_TASK_TIMEOUT => hccl::E_TIMEOUT,
            code::RT_LINK_ERROR => hccl::E_NETWORK,
            _ => hccl::E_INTERNAL,
        });
        let Some(meeting) = self.meetings.get_mut(key) else { return };
        meeting.outcome = Some(outcome);
        let (Key::All { clique, .. } | Key::Pair { clique, .. }) = *key;
        if let Some(error) = asynchronous {
            for comm in self.comms.values_mut().filter(|comm| comm.clique == clique) {
                if meeting.parts.contains_key(&comm.rank) {
                    comm.error = error;
                }
            }
        }
    }

    /// Takes a rank's parts out of its meetings, which are over: the first failure.
    pub(crate) fn leave_meetings(&mut self, keys: &[Key], rank: u32) -> Result {
        let mut failure = Ok(());
        for key in keys {
            let Some(meeting) = self.meetings.get_mut(key) else { continue };
            meeting.parts.remove(&rank);
            if let Some(Err(fail)) = &meeting.outcome {
                failure = failure.and(Err(fail.clone()));
            }
            if meeting.parts.is_empty() {
                self.meetings.remove(key);
            }
        }
        failure
    }

    /// A rank will not come to these meetings.
    pub(crate) fn miss_meetings(&mut self, keys: &[Key], rank: u32, why: &str) {
        for key in keys {
            let part = self.meetings.get_mut(key).and_then(|meeting| meeting.parts.get_mut(&rank));
            if let Some(part) = part {
                part.absent.get_or_insert_with(|| why.to_owned());
            }
        }
    }

    /// Finds parts whose work is gone from its stream: those ranks never come.
    pub(crate) fn find_orphans(&mut self) {
        let streams = &self.streams;
        for meeting in self.meetings.values_mut().filter(|meeting| meeting.outcome.is_none()) {
            for part in meeting.parts.values_mut() {
                let stream = streams.get(&part.point.stream);
                if stream.is_none_or(|stream| stream.done >= part.point.seq) {
                    part.absent.get_or_insert_with(|| "its stream was aborted or destroyed".to_owned());
                }
            }
        }
        // A meeting that only absent ranks are left of has nobody to fail for.
        self.meetings.retain(|_, m| {
            m.outcome.is_some()
                || m.parts.values().any(|part| {
                    streams.get(&part.point.stream).is_some_and(|stream| stream.done < part.point.seq)
                })
        });
    }

    /// Notes which ranks have arrived and gives up on meetings that have waited too long. When to look again.
    pub(crate) fn watch_meetings(&mut self) -> Option<Instant> {
        let (now, patience) = (Instant::now(), self.timeouts.execution);
        let (mut next, mut late): (Option<Instant>, Vec<(Key, Fail)>) = (None, Vec::new());
        let mut look = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        for (key, meeting) in self.meetings.iter_mut().filter(|(_, meeting)| meeting.outcome.is_none()) {
            let mut first = None;
            for part in meeting.parts.values_mut() {
                let stream = self.streams.get(&part.point.stream);
                if stream.is_some_and(|stream| stream.done + 1 == part.point.seq) {
                    let arrived = *part.arrived.get_or_insert(now);
                    first = Some(first.map_or(arrived, |first: Instant| first.min(arrived)));
                    if let Some(at) =
                        part.delay.and_then(|delay| arrived.checked_add(delay)).filter(|at| *at > now)
                    {
                        look(at);
                    }
                }
            }
            let complete = meeting.parts.len() == meeting.size;
            let absent = meeting.parts.iter().find_map(|(rank, part)| Some((*rank, part.absent.clone()?)));
            // Where everybody has called, nothing but a ring of ranks that wait for each other holds up what is waited for.
            let stuck = meeting.parts.values().any(|part| self.schedule.is_awaited(part.point));
            let deadline = first.and_then(|first| first.checked_add(patience));
            match deadline.filter(|_| !complete || absent.is_some() || stuck) {
                Some(deadline) if deadline <= now => {
                    let have: Vec<u32> = meeting.parts.keys().copied().collect();
                    let why = match absent {
                        Some((rank, why)) => format!("rank {rank} never came: {why}"),
                        None if complete => format!("ranks {have:?} wait for each other in a ring"),
                        None => format!("of {} ranks only {have:?} called", meeting.size),
                    };
                    let text = format!("{why}; gave up after {patience:?} (HCCL_EXEC_TIMEOUT)");
                    late.push((*key, Fail::new(code::RT_TASK_TIMEOUT, text)));
                }
                Some(deadline) => look(deadline),
                None => {}
            }
        }
        if !late.is_empty() {
            look(now);
        }
        for (key, fail) in late {
            self.end_meeting(&key, Err(fail));
        }
        next
    }

    /// Whether a rank of a communicator has work in a meeting that is not over.
    pub(crate) fn has_pending_meetings(&self, clique: u64, rank: u32) -> Vec<Key> {
        let of = |key: &Key| matches!(*key, Key::All { clique: c, .. } | Key::Pair { clique: c, .. } if c == clique);
        let pending = self.meetings.iter().filter(|(key, meeting)| {
            // What was aborted, or stopped before, is under way no more.
            let pending = meeting.parts.get(&rank).is_some_and(|part| part.absent.is_none());
            of(key) && meeting.outcome.is_none() && pending
        });
        pending.map(|(key, _)| *key).collect()
    }
}

/// Does what a meeting is for.
pub(crate) fn carry_out(world: &'static World, shares: Vec<(u32, Share)>) -> Result {
    let seed = {
        let mut state = world.state();
        if let Some(fail) = state.faults.at_meeting() {
            return Err(fail);
        }
        state.schedule.seed
    };
    let (mut exchanges, mut operators) = (Vec::new(), Vec::new());
    for (rank, share) in shares {
        match share {
            Share::Exchange(exchange) => exchanges.push((rank, exchange)),
            Share::Operator { together, prepare, .. } => operators.push((together, prepare(world)?)),
        }
    }
    let parcels = operators.iter().map(|(together, run)| (together.give)(run)).collect::<Result<Vec<_>>>()?;
    operators.iter().try_for_each(|(together, run)| (together.take)(run, &parcels))?;
    exchange(world, &exchanges, seed)
}
