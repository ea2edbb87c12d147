//! Collectives between ranks that are threads of one process.
//!
//! From the bottom: a [`Hub`](portolan_core::meeting::Hub) where threads meet, a [`gate`] before memory that others read, a [`transport`] that is
//! all a group needs to know of how its ranks reach each other (in one process: [`local`]), and one file for each
//! operator, which moves data by what a [`turn`] offers. A rank waits for others on its stream's thread only, never
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
use portolan_core::sync::atomic::Ordering;
use portolan_core::{Collectives, CommConfig, CommId, Ordinal, RawCommunicator};
use portolan_ops::Result;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

pub(crate) use local::Groups;

impl Collectives for CpuBackend {
    fn new_id(&self) -> Result<CommId> {
        // A number for this backend, and keys that the standard library draws at random for this process.
        let number = self.groups.numbers.fetch_add(1, Ordering::Relaxed);
        let half = |salt: u64| {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u64(number ^ salt);
            hasher.finish().to_le_bytes()
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&half(0));
        id[8..].copy_from_slice(&half(1));
        Ok(CommId(id))
    }

    fn communicator(&self, _device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        let transport = self.groups.join(config)?;
        Ok(member::CpuCommunicator::new(Box::new(transport), config.timeout))
    }
}
