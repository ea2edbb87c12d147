//! [`ReduceTo`]: the tensors of all ranks combined, for one.

use super::ReduceTo;
use crate::comm::Communicator;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::comm::{ReduceOp, ReduceToSpec};

impl ReduceTo {
    /// `out = reduce over ranks of x`, on the rank `root`, which is the only one to give an `out`; it may be `x`
    /// itself.
    ///
    /// # Errors
    /// As [`ReduceToSpec::new`] and [`crate::CollectiveCall::bind`].
    pub fn new(
        comm: &Communicator,
        reduce: ReduceOp,
        root: u32,
        x: &Tensor,
        out: Option<&mut Tensor>,
    ) -> Result<Self> {
        let out: Option<&Tensor> = out.map(|out| &*out);
        let spec = ReduceToSpec::new(comm.ranks(), reduce, root, x.spec(), out.map(Tensor::spec))?;
        match out {
            Some(out) => Self::bind(comm, spec, &[x, out]),
            None => Self::bind(comm, spec, &[x]),
        }
    }
}
