//! What an operator works with once the ranks agree: their windows, copies out of them, and fences.

use super::transport::{Announcement, Transport, Window};
use crate::elementwise::walk::Base;
use crate::queue::Exec;
use portolan_core::meeting::{At, Stop};
use portolan_core::sync::{Mutex, lock};
use portolan_ops::comm::Ranks;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a task of a copy: far more than waking a thread of the team costs, so that what is small stays on the
/// stream's own thread, beside those of the other ranks.
const TASK: usize = 1 << 20;

pub(super) struct Turn<'a> {
    pub(super) transport: &'a dyn Transport,
    pub(super) at: At,
    pub(super) timeout: Duration,
    /// What every rank announced, in order.
    pub(super) peers: &'a [Arc<Announcement>],
    pub(super) exec: &'a Exec,
}

impl Turn<'_> {
    pub(super) fn ranks(&self) -> Ranks {
        self.transport.ranks()
    }

    /// The other ranks and then this one, beginning with the next, so that not all ask the same one first.
    pub(super) fn all_from_next(&self) -> impl Iterator<Item = usize> + use<> {
        let (me, count) = (self.ranks().index(), self.ranks().count());
        (1..=count).map(move |step| (me + step) % count)
    }

    /// Window `window` of rank `peer`.
    pub(super) fn window(&self, peer: usize, window: usize) -> Result<Window, Stop> {
        let known = self.peers.get(peer).and_then(|peer| peer.windows.get(window)).copied();
        known.ok_or_else(|| Stop { rank: peer, at: Some(self.at), what: "announced too few operands".into() })
    }

    /// Waits until all ranks have come here.
    pub(super) fn fence(&self) -> Result<(), Stop> {
        self.transport.fence(self.at, self.timeout)
    }

    /// Copies `bytes` bytes from `place` of a peer's window to this rank's `into`, from byte `to` of it on.
    ///
    /// Nobody may be writing what is read, and nobody else may read or write what is written.
    pub(super) fn copy(
        &self,
        peer: usize,
        window: usize,
        place: usize,
        into: Window,
        to: usize,
        bytes: usize,
    ) -> Result<(), Stop> {
        let from = self.window(peer, window)?;
        self.check(peer, place, bytes, from)?;
        self.check(self.ranks().index(), to, bytes, into)?;
        let base = Base::write((into.address as *mut u8).wrapping_add(to));
        self.tasks(bytes.div_ceil(TASK), &|task| {
            let start = task * TASK;
            let len = TASK.min(bytes - start);
            // SAFETY: `check` has seen that both stretches lie within their windows, which are operands whose memory
            // stream order protects until their owner's part has ended; the operator says that nobody writes the
            // one or uses the other, and tasks are disjoint.
            unsafe { self.transport.read(peer, from, place + start, base.start().wrapping_add(start), len) }
        })
    }

    /// Fails unless `bytes` bytes from `place` lie within a window.
    pub(super) fn check(&self, rank: usize, place: usize, bytes: usize, window: Window) -> Result<(), Stop> {
        match place.checked_add(bytes).is_some_and(|end| end <= window.bytes) {
            true => Ok(()),
            false => {
                let what =
                    format!("announced {} bytes, of which {bytes} from {place} are asked", window.bytes);
                Err(Stop { rank, at: Some(self.at), what })
            }
        }
    }

    /// Shares tasks among the stream's threads; the first to fail decides.
    pub(super) fn tasks(
        &self,
        tasks: usize,
        task: &(dyn Fn(usize) -> Result<(), Stop> + Sync),
    ) -> Result<(), Stop> {
        let failed = Mutex::new(None);
        self.exec.team.run_with(tasks, self.exec.threads, &|index| {
            if let Err(stop) = task(index) {
                lock(&failed).get_or_insert(stop);
            }
        });
        lock(&failed).take().map_or(Ok(()), Err)
    }
}
