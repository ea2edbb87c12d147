//! Groups of which one rank is counted: nothing is sent, so nobody is waited for and nobody need be there.

use crate::MetaBackend;
use portolan_core::sync::atomic::{AtomicU64, Ordering};
use portolan_core::sync::{Mutex, lock};
use portolan_core::{Collectives, CommConfig, CommId, Launch, Ordinal, RawCommunicator, call};
use portolan_ops::comm::Ranks;
use portolan_ops::{DeviceId, OpError, Result, Unsupported};
use std::sync::Arc;

impl Collectives for MetaBackend {
    fn new_id(&self) -> Result<CommId> {
        let number = self.groups.fetch_add(1, Ordering::Relaxed);
        Ok(CommId(u128::from(number).to_le_bytes()))
    }

    fn communicator(&self, device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        let ranks = Ranks::new(config.rank, config.world_size)?;
        Ok(Arc::new(MetaCommunicator { device, ranks, ran: AtomicU64::new(0), ended: Mutex::new(None) }))
    }
}

struct MetaCommunicator {
    device: Ordinal,
    ranks: Ranks,
    /// Operators so far.
    ran: AtomicU64,
    /// Why it was aborted.
    ended: Mutex<Option<OpError>>,
}

macro_rules! communicator {
    ($( $(#[$doc:meta])* $kind:ident, $spec:ty, $method:ident; )*) => {
        impl RawCommunicator for MetaCommunicator {
            fn ranks(&self) -> Ranks {
                self.ranks
            }

            /// The other ranks' colors are data that nobody has.
            fn split(&self, _color: Option<u32>, _key: u32) -> Result<Option<Arc<dyn RawCommunicator>>> {
                Err(OpError::Unsupported {
                    op: "split".into(),
                    device: DeviceId::new("meta", self.device),
                    reason: Unsupported::NoData,
                    hint: "join a group of as many ranks as the part would have".into(),
                })
            }

            fn abort(&self, why: &str) {
                lock(&self.ended).get_or_insert_with(|| OpError::Collective {
                    op: "communicator".into(),
                    seq: self.ran.load(Ordering::Relaxed),
                    rank: self.ranks.rank(),
                    world_size: self.ranks.world_size(),
                    what: why.into(),
                });
            }

            fn health(&self) -> Result<()> {
                lock(&self.ended).clone().map_or(Ok(()), Err)
            }

            $(
                fn $method(&self, _launch: &Launch<'_>, _op: &call::$kind) -> Result<()> {
                    self.ran.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                }
            )*
        }
    };
}
portolan_core::for_each_collective!(communicator);
