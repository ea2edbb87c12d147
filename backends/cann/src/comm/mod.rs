//! Collectives over HCCL between ranks that are threads of one process, each with a device of its own.
//!
//! HCCL matches the ranks' calls by their order alone: ranks that disagree, or one that does not come, leave the others'
//! devices waiting for as long as the driver's own timeout. So ranks meet on the host first ([`portolan_core::meeting`]),
//! within the group's timeout, and call HCCL only when all have come with calls that fit together.

mod expert_parallel_ffn;
mod fold;
mod group;
mod member;
mod movement;

pub(crate) use fold::plan;
pub(crate) use group::Group;
pub(crate) use member::{Engagement, Member, Watchers};

use crate::CannBackend;
use portolan_core::{Collectives, CommConfig, CommId, Ordinal, RawCommunicator};
use portolan_ops::Result;
use std::sync::Arc;

impl Collectives for CannBackend {
    fn new_id(&self) -> Result<CommId> {
        self.driver()?.libraries.collectives.HcclCommInitRootInfo().map_err(crate::error::unavailable)?;
        Ok(self.groups.new_id())
    }

    fn communicator(&self, device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        Ok(group::join(&self.groups, self.driver()?, device, config)?)
    }
}
