//! All that a group needs to know of how its ranks reach each other.
//!
//! Nothing here assumes one process: what is announced is data, and a peer's memory is only ever copied from. A
//! transport between machines answers [`Transport::read`] by asking the peer.

use portolan_core::meeting::{At, Stop};
use portolan_ops::comm::{Ranks, Signature};
use smallvec::SmallVec;
use std::sync::Arc;
use std::time::Duration;

/// Memory of one rank that others may read during one operator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    /// Of the first byte, where its owner is.
    pub(crate) address: usize,
    /// Length.
    pub(crate) bytes: usize,
}

/// What a rank says before data moves.
#[derive(Clone, Debug)]
pub(crate) struct Announcement {
    pub(crate) seq: u64,
    pub(crate) signature: Signature,
    /// Its operands: those that are read, then those that are written.
    pub(crate) windows: SmallVec<[Window; 2]>,
}

/// One rank's way to the others. Dropping it tells them that it has left.
pub(crate) trait Transport: Send + Sync {
    /// This rank, and how many there are.
    fn ranks(&self) -> Ranks;

    /// Announces an operator and opens its windows; gives the announcements of all ranks, in order, when all have come.
    /// A fence must follow before the next one.
    fn meet(
        &self,
        at: At,
        announcement: Announcement,
        timeout: Duration,
    ) -> Result<Vec<Arc<Announcement>>, Stop>;

    /// Returns when all ranks have come to the same fence: what they wrote before it can be read.
    fn fence(&self, at: At, timeout: Duration) -> Result<(), Stop>;

    /// Copies `bytes` bytes from `place` of a window of rank `peer`, which fails when that rank has ended its part.
    ///
    /// # Safety
    /// `window` was announced by `peer` for the present operator, the bytes lie within it, nobody writes them, and
    /// `into` is valid for as many.
    unsafe fn read(
        &self,
        peer: usize,
        window: Window,
        place: usize,
        into: *mut u8,
        bytes: usize,
    ) -> Result<(), Stop>;

    /// Closes this rank's windows: when it returns nobody reads them, nor will.
    fn close(&self);

    /// Ends the group on all ranks. Waits for nobody.
    fn stop(&self, stop: Stop);

    /// Why the group has ended, if it has.
    fn stopped(&self) -> Option<Stop>;

    /// This rank's way to those of its color, ranked by key and then by present rank; waits for all ranks.
    fn split(
        &self,
        color: Option<u32>,
        key: u32,
        timeout: Duration,
    ) -> Result<Option<Box<dyn Transport>>, Stop>;
}
