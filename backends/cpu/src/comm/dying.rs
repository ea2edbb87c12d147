//! A transport whose rank dies while it moves data, as a fault plan has it: after so many reads it neither reads nor comes
//! to a fence.

use super::transport::{Announcement, Transport, Window};
use portolan_core::meeting::{At, Stop};
use portolan_core::sync::atomic::{AtomicU64, Ordering};
use portolan_ops::comm::Ranks;
use std::sync::Arc;
use std::time::Duration;

/// How a rank dies.
#[derive(Clone, Copy)]
pub(super) struct Doom {
    /// Reads that it lives for.
    pub(super) moves: u64,
    pub(super) why: &'static str,
}

pub(super) struct Dying<'a> {
    inner: &'a dyn Transport,
    doom: Doom,
    moved: AtomicU64,
}

impl<'a> Dying<'a> {
    pub(super) fn new(inner: &'a dyn Transport, doom: Doom) -> Self {
        Self { inner, doom, moved: AtomicU64::new(0) }
    }

    pub(super) fn death(&self, at: At) -> Stop {
        self.death_at(Some(at))
    }

    fn death_at(&self, at: Option<At>) -> Stop {
        Stop { rank: self.ranks().index(), at, what: self.doom.why.into() }
    }
}

impl Transport for Dying<'_> {
    fn ranks(&self) -> Ranks {
        self.inner.ranks()
    }
    fn meet(&self, at: At, _: Announcement, _: Duration) -> Result<Vec<Arc<Announcement>>, Stop> {
        Err(self.death(at))
    }
    fn fence(&self, at: At, timeout: Duration) -> Result<(), Stop> {
        match self.moved.load(Ordering::Relaxed) < self.doom.moves {
            true => self.inner.fence(at, timeout),
            false => Err(self.death(at)),
        }
    }
    unsafe fn read(
        &self,
        peer: usize,
        window: Window,
        place: usize,
        into: *mut u8,
        bytes: usize,
    ) -> Result<(), Stop> {
        if self.moved.fetch_add(1, Ordering::Relaxed) >= self.doom.moves {
            return Err(self.death_at(None));
        }
        // SAFETY: the caller says it of the same arguments.
        unsafe { self.inner.read(peer, window, place, into, bytes) }
    }
    fn close(&self) {
        self.inner.close();
    }
    fn stop(&self, _: Stop) {}
    fn stopped(&self) -> Option<Stop> {
        self.inner.stopped()
    }
    fn split(&self, _: Option<u32>, _: u32, _: Duration) -> Result<Option<Box<dyn Transport>>, Stop> {
        Err(self.death_at(None))
    }
}
