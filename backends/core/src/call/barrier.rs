//! [`Barrier`]: waits for every rank.

use super::Barrier;
use crate::comm::Communicator;
use portolan_ops::Result;
use portolan_ops::comm::BarrierSpec;

impl Barrier {
    /// Later work of the stream runs when every rank has come this far.
    ///
    /// # Errors
    /// None in practice; as [`crate::CollectiveCall::bind`].
    pub fn new(comm: &Communicator) -> Result<Self> {
        Self::bind(comm, BarrierSpec::new(comm.ranks()), &[])
    }
}
