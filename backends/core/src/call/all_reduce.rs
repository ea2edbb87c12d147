//! [`AllReduce`]: the tensors of all ranks combined, for all.

use super::AllReduce;
use crate::comm::Communicator;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::comm::{AllReduceSpec, ReduceOp};

impl AllReduce {
    /// `out = reduce over ranks of x`, on every rank; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`AllReduceSpec::new`] and [`crate::CollectiveCall::bind`].
    pub fn new(comm: &Communicator, reduce: ReduceOp, x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(comm, AllReduceSpec::new(comm.ranks(), reduce, x.spec(), out.spec())?, &[x, out])
    }

    /// `out = Σ over ranks of x`, on every rank; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`AllReduce::new`].
    pub fn sum(comm: &Communicator, x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::new(comm, ReduceOp::Sum, x, out)
    }
}

/// The tensors of all ranks combined, on every rank; see [`AllReduceSpec`].
///
/// # Errors
/// As [`AllReduce::new`] and [`Stream::run`].
pub fn all_reduce(stream: &Stream, comm: &Communicator, reduce: ReduceOp, x: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&AllReduceSpec::out_spec(x.spec()))?;
    stream.run(AllReduce::new(comm, reduce, x, &mut out)?)?;
    Ok(out)
}
