//! [`ExpertParallelFfn`]: the network of a mixture of experts that are spread over the ranks.

use super::{ExpertFfn, ExpertParallelFfn};
use crate::comm::Communicator;
use crate::op::Op;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::comm::ExpertParallelFfnSpec;

impl ExpertParallelFfn {
    /// `network`, whose ids count the experts of all ranks and whose weights are the experts of this one. No rank has more
    /// than `most_tokens`.
    ///
    /// # Errors
    /// As [`ExpertParallelFfnSpec::new`] and [`crate::CollectiveCall::bind`].
    pub fn new(comm: &Communicator, most_tokens: usize, network: &ExpertFfn) -> Result<Self> {
        let spec = ExpertParallelFfnSpec::new(comm.ranks(), most_tokens, network.spec().clone())?;
        let mut tensors = Vec::new();
        network.operands(&mut |arg| tensors.push(Tensor::new(arg.buffer.clone(), *arg.spec)));
        let tensors = tensors.into_iter().collect::<Result<Vec<Tensor>>>()?;
        Self::bind(comm, spec, &tensors.iter().collect::<Vec<&Tensor>>())
    }
}
