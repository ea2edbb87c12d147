//! Groups of ranks and the collectives they run.

use crate::launch::Launch;
use crate::tensor::Tensor;
use portolan_ops::{Determinism, Result};
use std::sync::Arc;
use std::time::Duration;

/// The identity of a group; made once, carried to every rank by the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommId(pub [u8; 16]);

/// How a rank joins a group.
#[derive(Clone, Debug)]
pub struct CommConfig {
    /// The group.
    pub id: CommId,
    /// This rank, below `world_size`.
    pub rank: u32,
    /// Ranks in the group.
    pub world_size: u32,
    /// The longest any call of this group may wait for a peer.
    pub timeout: Duration,
    /// From `RunToRun` on, reductions have a fixed order.
    pub determinism: Determinism,
}

/// How ranks' values are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReduceOp {
    /// Sum.
    Sum,
    /// Largest.
    Max,
    /// Smallest.
    Min,
}

/// A send or a receive within a group call.
#[derive(Clone, Debug)]
pub enum P2p {
    /// Sends the tensor to a rank.
    Send {
        /// What.
        tensor: Tensor,
        /// To whom.
        peer: u32,
    },
    /// Receives into the tensor from a rank.
    Recv {
        /// Where to.
        tensor: Tensor,
        /// From whom.
        peer: u32,
    },
}

/// A group of ranks, bound to the order of one stream.
///
/// Every rank posts (sequence, kind, count, element type, root) before data moves, so that a mismatch is
/// an error on every rank and never a hang. Counts are host values. A dead or late rank is a
/// `Collective` error that names it, within the group's timeout; the group is unusable afterwards.
pub trait Communicator: Send + Sync {
    /// This rank.
    fn rank(&self) -> u32;
    /// Ranks in the group.
    fn world_size(&self) -> u32;
    /// `out = reduce over ranks of x`, on every rank.
    fn all_reduce(&self, launch: &Launch<'_>, op: ReduceOp, x: &Tensor, out: &Tensor) -> Result<()>;
    /// `out = x of rank 0, x of rank 1, …`, on every rank.
    fn all_gather(&self, launch: &Launch<'_>, x: &Tensor, out: &Tensor) -> Result<()>;
    /// [`Communicator::all_gather`] with a row count per rank.
    fn all_gather_v(&self, launch: &Launch<'_>, x: &Tensor, out: &Tensor, counts: &[usize]) -> Result<()>;
    /// `out = part r of the reduction`, on rank r.
    fn reduce_scatter(&self, launch: &Launch<'_>, op: ReduceOp, x: &Tensor, out: &Tensor) -> Result<()>;
    /// [`Communicator::reduce_scatter`] with a row count per rank.
    fn reduce_scatter_v(
        &self,
        launch: &Launch<'_>,
        op: ReduceOp,
        x: &Tensor,
        out: &Tensor,
        counts: &[usize],
    ) -> Result<()>;
    /// Part p of x goes to rank p; parts arrive in rank order.
    fn all_to_all(&self, launch: &Launch<'_>, x: &Tensor, out: &Tensor) -> Result<()>;
    /// [`Communicator::all_to_all`] with row counts sent to and received from each rank.
    fn all_to_all_v(
        &self,
        launch: &Launch<'_>,
        x: &Tensor,
        out: &Tensor,
        send: &[usize],
        recv: &[usize],
    ) -> Result<()>;
    /// x of the root, on every rank.
    fn broadcast(&self, launch: &Launch<'_>, x: &Tensor, root: u32) -> Result<()>;
    /// The reduction, on the root.
    fn reduce(&self, launch: &Launch<'_>, op: ReduceOp, x: &Tensor, out: &Tensor, root: u32) -> Result<()>;
    /// Sends and receives that proceed together (a ring deadlocks without).
    fn group(&self, launch: &Launch<'_>, parts: &[P2p]) -> Result<()>;
    /// Returns when every rank has arrived.
    fn barrier(&self, launch: &Launch<'_>) -> Result<()>;
    /// Splits the group by color; `None` takes part but joins no new group.
    fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn Communicator>>>;
    /// Fails every pending and later call of this group, on every rank.
    fn abort(&self);
}
