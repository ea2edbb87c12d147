//! What decorators do around a rank's membership in a group, as [`Decorate`](super::Decorate) says it of a backend.

use crate::backend::RawStream;
use crate::call::{self, CollectiveCall, CollectiveDispatch};
use crate::comm::RawCommunicator;
use crate::launch::Launch;
use crate::sync::atomic::{AtomicU64, Ordering};
use portolan_ops::Result;
use portolan_ops::comm::Ranks;
use std::sync::Arc;

/// What a decorator does around the membership it wraps. A backend's decorator makes one where a group is joined:
/// [`Decorate::communicator`](super::Decorate::communicator).
pub trait DecorateMember: Send + Sync + 'static {
    /// The wrapped membership.
    fn inner(&self) -> &dyn RawCommunicator;

    /// Launches an operator over ranks, `seq`-th of this membership, counted from 0 as errors count: `forward` hands
    /// it to the wrapped membership.
    ///
    /// # Errors
    /// Those of the launch.
    fn launch<C: CollectiveDispatch>(
        &self,
        launch: &Launch<'_>,
        seq: u64,
        op: &CollectiveCall<C>,
        forward: &dyn Fn() -> Result<()>,
    ) -> Result<()>;

    /// As [`RawCommunicator::split`]; the part's membership is wrapped too.
    ///
    /// # Errors
    /// Those of the split.
    fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn RawCommunicator>>>;

    /// As [`RawCommunicator::abort`].
    fn abort(&self, why: &str) {
        self.inner().abort(why);
    }

    /// As [`RawCommunicator::health`].
    ///
    /// # Errors
    /// `Collective`.
    fn health(&self) -> Result<()> {
        self.inner().health()
    }
}

/// A decorator of a membership as a membership.
pub struct DecoratedMember<D> {
    decorator: D,
    /// The number of the next operator. Launches of a communicator follow each other, on whichever streams.
    next: AtomicU64,
}

impl<D: DecorateMember> DecoratedMember<D> {
    /// The membership that `decorator` makes of the one it wraps.
    pub fn new(decorator: D) -> Arc<Self> {
        Arc::new(Self { decorator, next: AtomicU64::new(0) })
    }
}

macro_rules! forward {
    ($( $(#[$doc:meta])* $kind:ident, $spec:ty, $method:ident; )*) => {
        impl<D: DecorateMember> RawCommunicator for DecoratedMember<D> {
            fn ranks(&self) -> Ranks {
                self.decorator.inner().ranks()
            }
            fn bind(&self, stream: &dyn RawStream) {
                self.decorator.inner().bind(stream);
            }
            fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn RawCommunicator>>> {
                self.decorator.split(color, key)
            }
            fn abort(&self, why: &str) {
                self.decorator.abort(why);
            }
            fn health(&self) -> Result<()> {
                self.decorator.health()
            }
            fn die_within_next(&self, moves: u64, why: &'static str) -> bool {
                self.decorator.inner().die_within_next(moves, why)
            }
            $(
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                    let seq = self.next.fetch_add(1, Ordering::Relaxed);
                    let forward = || self.decorator.inner().$method(launch, op);
                    self.decorator.launch(launch, seq, op, &forward)
                }
            )*
        }
    };
}
crate::for_each_collective!(forward);
