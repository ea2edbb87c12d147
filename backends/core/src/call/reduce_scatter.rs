//! [`ReduceScatter`]: the tensors of all ranks combined, a part for each.

use super::ReduceScatter;
use crate::comm::Communicator;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::comm::{ReduceOp, ReduceScatterSpec};

impl ReduceScatter {
    /// `out = this rank's rows of (reduce over ranks of x)`, all ranks getting as many rows.
    ///
    /// # Errors
    /// As [`ReduceScatterSpec::new`] and [`crate::CollectiveCall::bind`].
    pub fn new(comm: &Communicator, reduce: ReduceOp, x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(comm, ReduceScatterSpec::new(comm.ranks(), reduce, x.spec(), out.spec())?, &[x, out])
    }

    /// As [`ReduceScatter::new`], rank r getting `rows[r]` rows; the counts are the same on all ranks.
    ///
    /// # Errors
    /// As [`ReduceScatterSpec::ragged`] and [`crate::CollectiveCall::bind`].
    pub fn ragged(
        comm: &Communicator,
        reduce: ReduceOp,
        rows: &[usize],
        x: &Tensor,
        out: &mut Tensor,
    ) -> Result<Self> {
        let spec = ReduceScatterSpec::ragged(comm.ranks(), reduce, rows, x.spec(), out.spec())?;
        Self::bind(comm, spec, &[x, out])
    }
}

/// This rank's rows of the tensors of all ranks combined; see [`ReduceScatterSpec`].
///
/// # Errors
/// As [`ReduceScatter::new`] and [`Stream::run`].
pub fn reduce_scatter(stream: &Stream, comm: &Communicator, reduce: ReduceOp, x: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&ReduceScatterSpec::out_spec(comm.ranks(), x.spec())?)?;
    stream.run(ReduceScatter::new(comm, reduce, x, &mut out)?)?;
    Ok(out)
}
