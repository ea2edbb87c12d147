//! The order between streams: who has waited for whom, and which faults travel along those waits.
//!
//! Everything here is used under the device's submission lock.

use crate::backend::{Fault, RawStream};
use crate::buffer::Point;
use crate::report::StreamReport;
use portolan_ops::{OpError, Result};
use smallvec::SmallVec;
use std::sync::Arc;

/// What the device knows of one living stream.
pub(crate) struct Slot {
    pub(crate) id: u64,
    pub(crate) raw: Arc<dyn RawStream>,
    /// Submissions so far; the latest has this number.
    pub(crate) seq: u64,
    /// How far this stream has waited for each other one.
    seen: SmallVec<[Point; 4]>,
    pub(crate) report: StreamReport,
}

/// All streams of a device, and the faults of those that are gone.
#[derive(Default)]
pub(crate) struct Slots {
    list: Vec<Slot>,
    fallen: Vec<(u64, Fault)>,
}

impl Slots {
    pub(crate) fn add(&mut self, id: u64, raw: Arc<dyn RawStream>) {
        self.list.push(Slot { id, raw, seq: 0, seen: SmallVec::new(), report: StreamReport::default() });
    }

    /// Forgets a stream whose work has finished; its fault, if any, is remembered for buffers it wrote.
    pub(crate) fn remove(&mut self, id: u64) {
        if let Some((_, fault)) = self.fault_of(id) {
            self.fallen.push((id, fault));
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

    /// Whether `stream` is already ordered behind `point`.
    pub(crate) fn has_seen(&self, stream: u64, point: Point) -> bool {
        stream == point.stream
            || self
                .get(stream)
                .is_some_and(|s| s.seen.iter().any(|p| p.stream == point.stream && p.seq >= point.seq))
    }

    /// The fault that poisons `stream`, with the stream it arose on: its own, or the first cause of one it
    /// waited for. `own_until` bounds its own faults (later ones do not concern an earlier event).
    pub(crate) fn fault_until(&self, stream: u64, own_until: u64) -> Option<(u64, Fault)> {
        let Some(slot) = self.get(stream) else {
            return self.fallen_fault(stream);
        };
        // Inherited causes come first: what a stream met after a poisoned wait may only be their echo.
        for point in &slot.seen {
            let fault = match self.get(point.stream) {
                Some(other) => other.raw.fault().map(|fault| (point.stream, fault)),
                None => self.fallen_fault(point.stream),
            };
            if let Some((origin, fault)) = fault
                && fault.seq <= point.seq
            {
                return Some((origin, fault));
            }
        }
        slot.raw.fault().filter(|fault| fault.seq <= own_until).map(|fault| (stream, fault))
    }

    fn fault_of(&self, stream: u64) -> Option<(u64, Fault)> {
        self.fault_until(stream, u64::MAX)
    }

    fn fallen_fault(&self, stream: u64) -> Option<(u64, Fault)> {
        self.fallen.iter().find(|(id, _)| *id == stream).map(|(id, fault)| (*id, fault.clone()))
    }

    /// `Poisoned` when the stream is.
    pub(crate) fn health(&self, stream: u64, until: u64) -> Result<()> {
        match self.fault_until(stream, until) {
            Some((origin, fault)) => Err(poisoned(origin, fault)),
            None => Ok(()),
        }
    }

    /// Orders later work of `stream` behind `point`: waits on the device unless an earlier wait covers it.
    pub(crate) fn order_after(&mut self, stream: u64, point: Point) -> Result<()> {
        if self.has_seen(stream, point) {
            return Ok(());
        }
        let Some(other) = self.get(point.stream) else {
            // The other stream is gone and had finished; only its fault is left to look at.
            return match self.fallen_fault(point.stream) {
                Some((origin, fault)) if fault.seq <= point.seq => Err(poisoned(origin, fault)),
                _ => Ok(()),
            };
        };
        // The event marks the other queue's present end, so it covers every submission up to now.
        let covered = Point { stream: point.stream, seq: other.seq };
        let event = other.raw.record()?;
        if let Some(slot) = self.get(stream) {
            slot.raw.wait(&event)?;
        }
        self.note_wait(stream, covered);
        Ok(())
    }

    /// Books that `stream` now waits for `point`, and with it for all that `point`'s stream waited for.
    pub(crate) fn note_wait(&mut self, stream: u64, point: Point) {
        let inherited: SmallVec<[Point; 4]> =
            self.get(point.stream).map(|s| s.seen.clone()).unwrap_or_default();
        if let Some(slot) = self.get_mut(stream) {
            for point in inherited.into_iter().chain([point]).filter(|p| p.stream != stream) {
                match slot.seen.iter_mut().find(|p| p.stream == point.stream) {
                    Some(known) => known.seq = known.seq.max(point.seq),
                    None => slot.seen.push(point),
                }
            }
        }
    }
}

pub(crate) fn poisoned(stream: u64, fault: Fault) -> OpError {
    OpError::Poisoned { stream, op: fault.op, seq: fault.seq, source: fault.source }
}
