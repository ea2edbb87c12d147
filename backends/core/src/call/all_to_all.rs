//! [`AllToAll`]: a part of every rank's rows to every rank.

use super::AllToAll;
use crate::comm::Communicator;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::comm::AllToAllSpec;

impl AllToAll {
    /// Part p of `x` goes to rank p, parts arrive in `out` in rank order; all have as many rows.
    ///
    /// # Errors
    /// As [`AllToAllSpec::new`] and [`crate::CollectiveCall::bind`].
    pub fn new(comm: &Communicator, x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(comm, AllToAllSpec::new(comm.ranks(), x.spec(), out.spec())?, &[x, out])
    }

    /// As [`AllToAll::new`], where `send[p]` rows go to rank p and `recv[p]` come from it.
    ///
    /// # Errors
    /// As [`AllToAllSpec::ragged`] and [`crate::CollectiveCall::bind`].
    pub fn ragged(
        comm: &Communicator,
        send: &[usize],
        recv: &[usize],
        x: &Tensor,
        out: &mut Tensor,
    ) -> Result<Self> {
        Self::bind(comm, AllToAllSpec::ragged(comm.ranks(), send, recv, x.spec(), out.spec())?, &[x, out])
    }
}

/// This rank's part of every rank's rows; see [`AllToAllSpec`].
///
/// # Errors
/// As [`AllToAll::new`] and [`Stream::run`].
pub fn all_to_all(stream: &Stream, comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&AllToAllSpec::out_spec(x.spec()))?;
    stream.run(AllToAll::new(comm, x, &mut out)?)?;
    Ok(out)
}
