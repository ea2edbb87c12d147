//! [`AllGather`]: the tensors of all ranks, for all.

use super::AllGather;
use crate::comm::Communicator;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::comm::AllGatherSpec;

impl AllGather {
    /// `out = x of rank 0, x of rank 1, …`, on every rank, all giving as many rows.
    ///
    /// # Errors
    /// As [`AllGatherSpec::new`] and [`crate::CollectiveCall::bind`].
    pub fn new(comm: &Communicator, x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(comm, AllGatherSpec::new(comm.ranks(), x.spec(), out.spec())?, &[x, out])
    }

    /// As [`AllGather::new`], rank r giving `rows[r]` rows; the counts are the same on all ranks.
    ///
    /// # Errors
    /// As [`AllGatherSpec::ragged`] and [`crate::CollectiveCall::bind`].
    pub fn ragged(comm: &Communicator, rows: &[usize], x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(comm, AllGatherSpec::ragged(comm.ranks(), rows, x.spec(), out.spec())?, &[x, out])
    }
}

/// The tensors of all ranks, one behind the other; see [`AllGatherSpec`].
///
/// # Errors
/// As [`AllGather::new`] and [`Stream::run`].
pub fn all_gather(stream: &Stream, comm: &Communicator, x: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&AllGatherSpec::out_spec(comm.ranks(), x.spec())?)?;
    stream.run(AllGather::new(comm, x, &mut out)?)?;
    Ok(out)
}
