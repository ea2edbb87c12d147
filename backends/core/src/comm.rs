//! Groups of ranks: how one is joined, and what a backend gives for it.

use crate::backend::RawStream;
use crate::call;
use crate::launch::Launch;
use crate::stream::Stream;
use crate::tensor::Tensor;
use core::fmt;
use portolan_ops::comm::Ranks;
use portolan_ops::{DType, Determinism, Result, TensorSpec};
use std::sync::Arc;
use std::time::Duration;

/// The identity of a group; made once, carried to every rank by the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommId(pub [u8; 16]);

/// How a rank joins a group.
#[derive(Clone, Debug)]
pub struct CommConfig {
    /// The group.
    pub id: CommId,
    /// This rank, below `world_size`.
    pub rank: u32,
    /// Ranks in the group.
    pub world_size: u32,
    /// The longest any call of this group waits for a peer. One that came late and got stuck is told of half a second
    /// later at most.
    pub timeout: Duration,
    /// From `RunToRun` on, reductions have a fixed order.
    pub determinism: Determinism,
}

macro_rules! raw_communicator {
    ($( $(#[$doc:meta])* $kind:ident, $spec:ty, $method:ident; )*) => {
        /// A backend's membership of one rank in a group; dropping it leaves the group.
        ///
        /// Every rank posts (sequence, kind, count, element type, root) before data moves, so that a mismatch is an
        /// error on every rank and never a hang. Counts are host values. A rank that is dead, late or of another
        /// mind is a `Collective` error on every other rank, within the group's timeout, and so is a stream of
        /// a member that fails: the error names the rank, the operation and its sequence number. The group is
        /// unusable afterwards; others are not concerned.
        ///
        /// The operators enqueue and return like every other kernel. A rank's operators are launched in the order
        /// in which they run, whatever their streams: the library sees to that.
        pub trait RawCommunicator: Send + Sync {
            /// This rank, and how many there are.
            fn ranks(&self) -> Ranks;

            /// Called when the group is joined, with the stream it is joined on: should that stream fail, the other
            /// ranks are told at once.
            fn bind(&self, stream: &dyn RawStream) {
                let _ = stream;
            }

            /// Splits the group by color, ranks ordered by key and then by their present rank. Every rank calls it,
            /// and blocks until all have; `None` takes part but joins no new group.
            fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn RawCommunicator>>>;

            /// Fails every pending and later call of this group, on every rank, saying that this rank did so and
            /// why. Blocks nobody.
            fn abort(&self, why: &str);

            /// Makes this rank die within its next operator, as a fault plan has it: it meets the others, moves so many
            /// pieces of data, fails with `why`, takes no part in anything of the group any more, and tells nobody.
            /// Whether the backend can; others have nothing to do.
            fn die_within_next(&self, moves: u64, why: &'static str) -> bool {
                let _ = (moves, why);
                false
            }

            /// What ended the group, if something has. The error names the operator that met the end, or, where none has
            /// so far, `communicator` and the number of the next one.
            ///
            /// # Errors
            /// `Collective`.
            fn health(&self) -> Result<()>;

            $(
                $(#[$doc])*
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()>;
            )*
        }
    };
}
crate::for_each_collective!(raw_communicator);

/// A rank's membership in a group; clones are the same membership, and the last one to go leaves the group.
///
/// Operators over ranks are values like any other: `stream.run(AllReduce::sum(&comm, &x, &mut out)?)`. Those of one
/// communicator follow each other in the order they are run, on whichever streams. Ranks in one process need a thread
/// each where their streams have none of their own, and a device handle each, so that none waits for memory that
/// another one holds.
#[derive(Clone)]
pub struct Communicator(Arc<Member>);

struct Member {
    raw: Arc<dyn RawCommunicator>,
    ranks: Ranks,
    stream: Stream,
    turn: Tensor,
}

impl Communicator {
    /// Joins a group on the device of `stream`. Blocks until every rank has joined, or the configuration's timeout
    /// has passed. Should the stream fail later, the group ends on every rank.
    ///
    /// # Errors
    /// `Attribute` for a rank outside of the group, `Collective` naming a rank that did not come or wants another
    /// group, `Unavailable` without collectives, `OutOfMemory`, `Capture` during a capture.
    pub fn join(stream: &Stream, config: &CommConfig) -> Result<Self> {
        Ranks::new(config.rank, config.world_size)?;
        stream.inner().refuse_in_capture("join")?;
        let turn = Self::first_turn(stream)?;
        let device = stream.inner().device();
        let raw = device.backend.communicator(device.ordinal, config)?;
        Ok(Self::new(raw, stream, turn))
    }

    fn new(raw: Arc<dyn RawCommunicator>, stream: &Stream, turn: Tensor) -> Self {
        raw.bind(stream.inner().raw());
        Self(Arc::new(Member { ranks: raw.ranks(), raw, stream: stream.clone(), turn }))
    }

    /// What every operator of the group holds as if it wrote it, so that they take turns.
    fn first_turn(stream: &Stream) -> Result<Tensor> {
        stream.empty_labelled(&TensorSpec::of(DType::U8, &[1])?, &"communicator".into())
    }

    /// This rank.
    pub fn rank(&self) -> u32 {
        self.0.ranks.rank()
    }
    /// Ranks in the group.
    pub fn world_size(&self) -> u32 {
        self.0.ranks.world_size()
    }
    /// This rank among the ranks of the group.
    pub fn ranks(&self) -> Ranks {
        self.0.ranks
    }
    /// The backend's membership.
    pub fn raw(&self) -> &dyn RawCommunicator {
        self.0.raw.as_ref()
    }
    pub(crate) fn turn(&self) -> &Tensor {
        &self.0.turn
    }

    /// Splits the group by color, ranks ordered by key and then by their present rank. Every rank calls it, and blocks
    /// until all have; with `None` it takes part but joins no new group.
    ///
    /// # Errors
    /// As [`Communicator::join`].
    pub fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Communicator>> {
        let stream = &self.0.stream;
        stream.inner().refuse_in_capture("split")?;
        let turn = Self::first_turn(stream)?;
        Ok(self.0.raw.split(color, key)?.map(|raw| Self::new(raw, stream, turn)))
    }

    /// Fails every pending and later call of this group, on every rank.
    pub fn abort(&self, why: &str) {
        self.0.raw.abort(why);
    }

    /// Whether the group still works.
    ///
    /// # Errors
    /// The `Collective` that ended it.
    pub fn health(&self) -> Result<()> {
        self.0.raw.health()
    }
}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {} on {:?}", self.rank(), self.world_size(), self.0.stream)
    }
}
