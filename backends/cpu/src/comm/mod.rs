//! Collectives between ranks that are threads of one process.
//!
//! From the bottom: a [`Hub`](portolan_core::meeting::Hub) where threads meet, a [`gate`] before memory that others
//! read, a [`transport`] that is all a group needs to know of how its ranks reach each other (in one process:
//! [`local`]), and one file for each operator, which moves data by what a [`turn`] offers. A rank waits for others on its stream's thread only, never
//! under the submission lock and never inside a region of the worker team.

mod all_gather;
mod all_reduce;
mod all_to_all;
mod broadcast;
mod dying;
mod exchange;
mod fold;
mod gate;
mod local;
mod member;
mod reduce_scatter;
mod reduce_to;
mod transport;
mod turn;

#[cfg(test)]
mod tests;

use crate::CpuBackend;
use portolan_core::{Collectives, CommConfig, CommId, Ordinal, RawCommunicator};
use portolan_ops::Result;
use std::sync::Arc;

pub(crate) use local::Group;

impl Collectives for CpuBackend {
    fn new_id(&self) -> Result<CommId> {
        Ok(self.groups.new_id())
    }

    fn communicator(&self, _device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        let transport = local::Local::join(&self.groups, config)?;
        Ok(member::CpuCommunicator::new(Box::new(transport), config.timeout))
    }
}
