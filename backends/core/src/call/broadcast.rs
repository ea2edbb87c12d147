//! [`Broadcast`]: the tensor of one rank, for all.

use super::Broadcast;
use crate::comm::Communicator;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::comm::BroadcastSpec;

impl Broadcast {
    /// `x = x of the rank root`, on every rank.
    ///
    /// # Errors
    /// As [`BroadcastSpec::new`] and [`crate::CollectiveCall::bind`].
    pub fn new(comm: &Communicator, root: u32, x: &mut Tensor) -> Result<Self> {
        Self::bind(comm, BroadcastSpec::new(comm.ranks(), root, x.spec())?, &[x])
    }
}
