//! [`Exchange`]: tensors from single ranks to single ranks.

use super::Exchange;
use crate::comm::Communicator;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::comm::{ExchangeSpec, Leg};

/// A tensor that is sent or received within an [`Exchange`].
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

impl P2p {
    fn tensor(&self) -> &Tensor {
        match self {
            P2p::Send { tensor, .. } | P2p::Recv { tensor, .. } => tensor,
        }
    }

    fn leg(&self) -> Leg {
        match self {
            P2p::Send { tensor, peer } => Leg::Send { peer: *peer, spec: *tensor.spec() },
            P2p::Recv { tensor, peer } => Leg::Recv { peer: *peer, spec: *tensor.spec() },
        }
    }
}

impl Exchange {
    /// All of these at once. Every rank of the group takes part, with none if it has none.
    ///
    /// # Errors
    /// As [`ExchangeSpec::new`] and [`crate::CollectiveCall::bind`].
    pub fn new(comm: &Communicator, parts: &[P2p]) -> Result<Self> {
        let legs: Vec<Leg> = parts.iter().map(P2p::leg).collect();
        let tensors: Vec<&Tensor> = parts.iter().map(P2p::tensor).collect();
        Self::bind(comm, ExchangeSpec::new(comm.ranks(), &legs)?, &tensors)
    }
}
