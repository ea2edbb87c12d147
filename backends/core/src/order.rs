//! The order between streams: who has waited for whom, and which faults travel along those waits.
//!
//! Two things are kept apart. *Ordered* says what has run before; *relied on* says whose results matter. A
//! stream that reads what another wrote before that one failed is ordered behind the failure, yet not hit by it.
//! Everything here is used under the device's submission lock.

use crate::backend::{Fault, RawStream};
use crate::buffer::Point;
use crate::report::StreamReport;
use portolan_ops::{OpError, Result};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// How many reliances on one stream are told apart; the oldest are merged beyond.
const RELIANCES: usize = 8;

/// From its own submission `since` on, a stream relies on another one's work up to `until`.
#[derive(Clone, Copy)]
struct Reliance {
    since: u64,
    until: u64,
}

/// What a stream knows of another one.
struct Seen {
    stream: u64,
    /// Everything the other stream was given up to here runs before later work of this one.
    ordered: u64,
    /// Oldest first; both numbers rise.
    relied: SmallVec<[Reliance; 2]>,
}

/// What whoever waits for a point in a stream learns of one stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    stream: u64,
    ordered: u64,
    relied: u64,
}

/// What whoever waits for a point in a stream learns: of that stream first, then of those it waited for.
pub(crate) type Horizon = SmallVec<[Known; 3]>;

/// What the device knows of one living stream.
pub(crate) struct Slot {
    pub(crate) id: u64,
    pub(crate) raw: Arc<dyn RawStream>,
    pub(crate) timeout: Duration,
    /// Submissions so far; the latest has this number.
    pub(crate) seq: u64,
    /// Submissions up to here are known to have finished, whatever has been enqueued since.
    completed: u64,
    seen: SmallVec<[Seen; 2]>,
    pub(crate) report: StreamReport,
}

/// Since when a stream is poisoned, in its own numbering, and by which fault of which stream.
#[derive(Clone)]
struct Poison {
    since: u64,
    origin: u64,
    fault: Fault,
}

/// What one launch relies on on other streams, to be asked when it executes: they have run by then, and their faults
/// are known.
///
/// A kernel that only computes need not ask, as whoever reads its results is told. One that passes data on to other
/// processes or devices must: nobody else can tell them.
#[derive(Clone, Default)]
pub struct Upstream(SmallVec<[(Arc<dyn RawStream>, u64); 2]>);

impl Upstream {
    /// The fault of another stream that what is launched relies on, if there is one.
    pub fn fault(&self) -> Option<Fault> {
        self.0.iter().find_map(|(raw, until)| raw.fault().filter(|fault| fault.seq <= *until))
    }
}

/// All streams of a device, and the faults of those that are gone.
#[derive(Default)]
pub(crate) struct Slots {
    list: Vec<Slot>,
    fallen: Vec<(u64, Poison)>,
}

impl Slots {
    pub(crate) fn add(&mut self, id: u64, raw: Arc<dyn RawStream>, timeout: Duration) {
        let (seen, report) = (SmallVec::new(), StreamReport::default());
        self.list.push(Slot { id, raw, timeout, seq: 0, completed: 0, seen, report });
    }

    /// Forgets a stream whose work has finished; its poison, if any, is remembered for buffers it wrote.
    pub(crate) fn remove(&mut self, id: u64) {
        match self.poison(id) {
            Some(poison) => self.fallen.push((id, poison)),
            None => self.list.iter_mut().for_each(|slot| slot.seen.retain(|seen| seen.stream != id)),
        }
        self.list.retain(|slot| slot.id != id);
    }

    pub(crate) fn get(&self, id: u64) -> Option<&Slot> {
        self.list.iter().find(|slot| slot.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Slot> {
        self.list.iter_mut().find(|slot| slot.id == id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.list.iter()
    }

    /// Books that a host has seen `stream` finish its work up to `seq`.
    pub(crate) fn note_completed(&mut self, stream: u64, seq: u64) {
        if let Some(slot) = self.get_mut(stream) {
            slot.completed = slot.completed.max(seq);
        }
    }

    /// Whether `stream` is already ordered behind `point`.
    pub(crate) fn has_seen(&self, stream: u64, point: Point) -> bool {
        stream == point.stream
            || self.get(point.stream).is_some_and(|s| s.completed >= point.seq)
            || self
                .get(stream)
                .is_some_and(|s| s.seen.iter().any(|k| k.stream == point.stream && k.ordered >= point.seq))
    }

    /// The first fault that concerns `stream`. An inherited one comes before its own from the submission on
    /// that waited: what a stream meets afterwards may only be the echo.
    fn poison(&self, stream: u64) -> Option<Poison> {
        let Some(slot) = self.get(stream) else {
            return self.fallen.iter().find(|(id, _)| *id == stream).map(|(_, poison)| poison.clone());
        };
        let own = slot.raw.fault().map(|fault| Poison { since: fault.seq, origin: stream, fault });
        let inherited = slot.seen.iter().filter_map(|seen| {
            let poison = match self.get(seen.stream) {
                Some(other) => {
                    other.raw.fault().map(|fault| Poison { since: fault.seq, origin: other.id, fault })
                }
                None => self.poison(seen.stream),
            }?;
            let since = seen.relied.iter().find(|r| r.until >= poison.since)?.since;
            Some(Poison { since, ..poison })
        });
        inherited.chain(own).min_by_key(|poison| poison.since)
    }

    /// What the next submission to `stream` relies on.
    pub(crate) fn upstream(&self, stream: u64) -> Upstream {
        let seen = self.get(stream).map(|slot| slot.seen.as_slice()).unwrap_or_default();
        let relied = seen.iter().filter_map(|seen| {
            let until = seen.relied.last()?.until;
            Some((self.get(seen.stream)?.raw.clone(), until))
        });
        Upstream(relied.collect())
    }

    /// `Poisoned` when work of `stream` up to `until` is.
    pub(crate) fn health(&self, stream: u64, until: u64) -> Result<()> {
        match self.poison(stream) {
            Some(Poison { since, origin, fault }) if since <= until => {
                Err(OpError::Poisoned { stream: origin, op: fault.op, seq: fault.seq, source: fault.source })
            }
            _ => Ok(()),
        }
    }

    /// What waiting for the present end of `stream` teaches whoever relies on its work up to `relied`.
    pub(crate) fn horizon(&self, stream: u64, relied: u64) -> Horizon {
        let Some(slot) = self.get(stream) else { return Horizon::new() };
        let others = slot.seen.iter().map(|seen| Known {
            stream: seen.stream,
            ordered: seen.ordered,
            relied: seen.relied.iter().rev().find(|r| r.since <= relied).map_or(0, |r| r.until),
        });
        [Known { stream, ordered: slot.seq, relied }].into_iter().chain(others).collect()
    }

    /// Orders submission `since` of `stream` behind `point`: waits on the device unless an earlier wait
    /// covers it, and books that the stream relies on it.
    pub(crate) fn order_after(&mut self, stream: u64, point: Point, since: u64) -> Result<()> {
        if stream == point.stream {
            return Ok(());
        }
        let Some(other) = self.get(point.stream) else {
            // The other stream is gone and had finished; only its poison is left to look at.
            if self.poison(point.stream).is_some_and(|poison| poison.since <= point.seq) {
                self.learn(
                    stream,
                    since,
                    &[Known { stream: point.stream, ordered: point.seq, relied: point.seq }],
                );
            }
            return Ok(());
        };
        if !self.has_seen(stream, point) {
            let event = other.raw.record()?;
            if let Some(slot) = self.get(stream) {
                slot.raw.wait(&event, since)?;
            }
            let horizon = self.horizon(point.stream, point.seq);
            self.learn(stream, since, &horizon);
        } else if !self.relies_on(stream, point) {
            // Ordered by an earlier wait, which says nothing of what the other stream waited for since.
            let mut horizon = self.horizon(point.stream, point.seq);
            horizon.iter_mut().for_each(|known| known.ordered = 0);
            self.learn(stream, since, &horizon);
        }
        Ok(())
    }

    fn relies_on(&self, stream: u64, point: Point) -> bool {
        self.get(stream).is_some_and(|slot| {
            let seen = slot.seen.iter().find(|seen| seen.stream == point.stream);
            seen.and_then(|seen| seen.relied.last()).is_some_and(|r| r.until >= point.seq)
        })
    }

    /// Books that `stream`, from its submission `since` on, is behind everything in `horizon`.
    pub(crate) fn learn(&mut self, stream: u64, since: u64, horizon: &[Known]) {
        let Some(slot) = self.get_mut(stream) else { return };
        for known in horizon.iter().filter(|known| known.stream != stream) {
            let at = slot.seen.iter().position(|seen| seen.stream == known.stream).unwrap_or_else(|| {
                slot.seen.push(Seen { stream: known.stream, ordered: 0, relied: SmallVec::new() });
                slot.seen.len() - 1
            });
            let seen = &mut slot.seen[at];
            seen.ordered = seen.ordered.max(known.ordered);
            let until = known.relied;
            if until == 0 || seen.relied.last().is_some_and(|r| r.until >= until) {
                continue;
            }
            seen.relied.push(Reliance { since, until });
            if seen.relied.len() > RELIANCES {
                // Errs towards poison: work between the two is held to rely on the later one as well.
                let second = seen.relied.remove(1);
                seen.relied[0].until = second.until;
            }
        }
    }
}
