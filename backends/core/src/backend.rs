//! The contract a backend implements: one trait for users, five small supertraits for implementers.
//!
//! Backends receive only legal arguments: an operator that exists has been validated. They answer with
//! `Unsupported` where a legal call is beyond them, and never with a panic.

use crate::buffer::HostBuffer;
use crate::call;
use crate::comm::{CommConfig, CommId, RawCommunicator};
use crate::compose;
use crate::device::DeviceInfo;
use crate::launch::Launch;
use crate::op::{CustomOp, Op, OpQuery};
use crate::stream::StreamOptions;
use crate::weight::{Consumer, Packing};
use portolan_ops::quant::WeightSpec;
use portolan_ops::{Determinism, OpError, OpName, Result, Unsupported};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// The number of a device within its backend.
pub type Ordinal = u32;

/// Everything a device must do. See the five supertraits.
///
/// # Identity
/// Two values of one backend type are two backends: tensors of one are foreign to the other.
pub trait Backend: Memory + Queue + Kernels + FusedOps + Collectives + Send + Sync + 'static {
    /// The platform's name, lower case: the part before the colon in `cpu:0`.
    fn name(&self) -> &'static str;

    /// The devices present, in ordinal order.
    ///
    /// # Errors
    /// `Unavailable` when the driver is missing or too old.
    fn devices(&self) -> Result<Vec<DeviceInfo>>;

    /// What running the operator would do, decided by the same `plan_*` functions that launching uses.
    fn support(&self, device: Ordinal, query: &OpQuery<'_>) -> Support;
}

/// What a backend says of an operator before it is launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// One native kernel (or a fixed few).
    Native,
    /// Composed from other operators on the same device, for this reason.
    Composed(Unsupported),
    /// Not possible on this device, for this reason.
    No(Unsupported),
}

/// Alignment rules of a device's memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryTraits {
    /// Every allocation starts on a multiple of this many bytes; a power of two.
    pub alignment: usize,
    /// Bytes past the end of an allocation that kernels may read.
    pub tail_padding: usize,
}

/// How much memory a device has.
#[derive(Clone, Copy, Debug)]
pub struct MemoryInfo {
    /// Bytes not reserved by this process's backend, within the limit.
    pub free: usize,
    /// Bytes the device may use in all.
    pub total: usize,
}

/// A large piece of device memory, as the driver hands it out; the pool cuts it up.
#[derive(Debug)]
pub struct Segment {
    /// Device address of the first byte.
    pub address: usize,
    /// Length in bytes.
    pub bytes: usize,
    /// What the backend needs to release it.
    pub handle: Box<dyn Any + Send + Sync>,
}

/// A copy between host memory and a device, or between two places of one device.
pub enum RawCopy {
    /// Host to device.
    Upload {
        /// Source, kept alive by this value.
        host: HostBuffer,
        /// Device address.
        address: usize,
    },
    /// Device to host.
    Download {
        /// Device address.
        address: usize,
        /// Destination, kept alive by this value; nobody reads it before the copy's event.
        host: HostBuffer,
    },
}

/// Segments and raw copies.
pub trait Memory {
    /// Alignment rules.
    fn traits(&self, device: Ordinal) -> MemoryTraits;

    /// Reserves at least `bytes` of device memory; not ordered with any stream.
    ///
    /// # Errors
    /// `OutOfMemory` (the pool adds the holders), `Driver`.
    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment>;

    /// Asked before the pool hands out a block for `bytes` bytes, whether or not it has to reserve for it. Backends
    /// let everything pass; a quota or a planned fault may not.
    ///
    /// # Errors
    /// `OutOfMemory` (the pool adds the holders), `Driver`.
    fn admit(&self, device: Ordinal, bytes: usize) -> Result<()> {
        let _ = (device, bytes);
        Ok(())
    }

    /// Gives a segment back. The pool calls this only when nothing uses it any more.
    fn release(&self, device: Ordinal, segment: Segment) -> Result<()>;

    /// Enqueues a copy on the launch's stream. The backend keeps the host buffer alive until it is done.
    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()>;

    /// Free and total bytes.
    fn memory_info(&self, device: Ordinal) -> Result<MemoryInfo>;
}

/// Streams and events.
pub trait Queue {
    /// A new in-order queue.
    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>>;

    /// Records what `record` launches on a stream into a graph of the driver's own, and runs none of it. `operators` is
    /// how many the program captured; each is one launch at least.
    ///
    /// `None`, without calling `record`, where the device has no such graphs: the library then launches the operators
    /// again at each replay. The stream's own queue goes on meanwhile, and what is launched waits for no event.
    ///
    /// # Errors
    /// `Capture` where the graph asks for more than the driver has, `Driver`, and whatever `record` returns.
    fn record_graph(
        &self,
        stream: &dyn RawStream,
        operators: usize,
        record: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Arc<dyn RawGraph>>> {
        let _ = (stream, operators, record);
        Ok(None)
    }
}

/// A driver's graph. Its owner keeps the memory that it uses, and one replay follows another.
pub trait RawGraph: Send + Sync {
    /// Enqueues a run of everything recorded on the launch's stream. The graph may be dropped before the run is over.
    ///
    /// # Errors
    /// `Driver`.
    fn replay(&self, launch: &Launch<'_>) -> Result<()>;
}

/// The first failure of a stream.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Submission number of the operator that failed.
    pub seq: u64,
    /// Its name.
    pub op: OpName,
    /// What happened.
    pub source: Arc<OpError>,
}

/// A backend's in-order queue. Work enqueued first finishes first; after a fault the rest is skipped, while
/// events are still signalled (else waiters would hang).
pub trait RawStream: Send + Sync + Any {
    /// Marks the present end of the queue.
    fn record(&self) -> Result<Arc<dyn RawEvent>>;

    /// As [`RawStream::record`], for an event whose time matters: the queue itself reaches it, right before what is
    /// enqueued next, where `record` may answer for an idle queue at once.
    fn stamp(&self) -> Result<Arc<dyn RawEvent>> {
        self.record()
    }

    /// Makes later work of this stream wait for an event of the same backend; does not block the host. A
    /// wait that fails is a fault of submission `seq`.
    fn wait(&self, event: &Arc<dyn RawEvent>, seq: u64) -> Result<()>;

    /// Whether everything enqueued has finished.
    fn is_idle(&self) -> bool;

    /// Blocks until everything enqueued so far has finished.
    ///
    /// # Errors
    /// `Timeout`. A fault is not an error here: ask [`RawStream::fault`].
    fn synchronize(&self, timeout: Duration) -> Result<()>;

    /// The first fault met so far; cheap while there is none.
    fn fault(&self) -> Option<Fault>;

    /// Called after the device's submission lock was released: executors without a thread of their own
    /// work here.
    fn drain(&self) {}

    /// For the backend's own downcast.
    fn as_any(&self) -> &dyn Any;
}

/// A point in a stream.
pub trait RawEvent: Send + Sync + Any {
    /// Whether the point was reached.
    fn is_complete(&self) -> bool;

    /// Blocks until the point is reached.
    ///
    /// # Errors
    /// `Timeout`.
    fn synchronize(&self, timeout: Duration) -> Result<()>;

    /// Time between two completed events of one stream; `None` while either is pending.
    fn elapsed_since(&self, start: &dyn RawEvent) -> Option<Duration>;

    /// For the backend's own downcast.
    fn as_any(&self) -> &dyn Any;
}

macro_rules! operator_traits {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        /// The kernel core: operators that cannot be composed from the others. All required.
        ///
        /// Every method enqueues and returns; none waits for the device. Backends whose kernel does not
        /// take these arguments answer `Unsupported`.
        pub trait Kernels {
            $(
                $(#[$kdoc])*
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()>;
            )*
        }

        /// Fused operators. Every one has a default body composed from the kernel core, so a backend is
        /// complete without any and becomes fast by overriding.
        pub trait FusedOps: Kernels {
            $(
                $(#[$fdoc])*
                fn $fmethod(&self, launch: &Launch<'_>, op: &call::$fkind) -> Result<()> {
                    compose::$fmethod(launch, op, Unsupported::NotImplemented)
                }
            )*

            /// The device's own form of a weight for an operator, or `None` when it computes on the
            /// weight as it is.
            ///
            /// Asked of a packed weight too: the form it should have. Calls over any other are refused
            /// before they are launched.
            fn packing(&self, device: Ordinal, weight: &WeightSpec, consumer: Consumer<'_>) -> Option<Packing> {
                let _ = (device, weight, consumer);
                None
            }

            /// A user's own operator: the backend finds its kernel by the backend's name.
            fn custom(&self, launch: &Launch<'_>, op: &CustomOp) -> Result<()> {
                Err(launch.unsupported(op.op_name(), Unsupported::NotImplemented, "register a kernel for this backend with CustomOp::with_kernel"))
            }
        }
    };
}
crate::for_each_op!(operator_traits);

/// Collective communication.
pub trait Collectives {
    /// A fresh identity that all ranks of a group share.
    fn new_id(&self) -> Result<CommId> {
        Err(no_collectives("new_id"))
    }

    /// Joins a group. Blocks until every rank has joined or the configuration's timeout passed.
    fn communicator(&self, device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        let _ = (device, config);
        Err(no_collectives("communicator"))
    }
}

fn no_collectives(op: &'static str) -> OpError {
    OpError::Unavailable {
        backend: op.into(),
        what: "this backend has no collectives; use one device".into(),
    }
}

/// How a stream's determinism level reads in a query.
impl OpQuery<'_> {
    /// Whether at least `level` was asked for.
    pub fn wants(&self, level: Determinism) -> bool {
        self.determinism >= level
    }
}
