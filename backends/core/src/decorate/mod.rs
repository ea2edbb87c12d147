//! Backends around backends: what explains ([`TraceLog`], [`ShadowLog`]) and what provokes ([`FaultPlan`]).
//!
//! A decorator says in [`Decorate`] what it does around the wrapped backend; [`Decorated`] makes a backend of it. Its
//! operator methods are generated from the operator table, so that none can be forgotten: a forgotten one would
//! silently turn a native kernel into a composition. Open the device from the decorated backend: the parts of
//! compositions go through the device's own backend, and so pass the decorator too.

mod communicator;
mod fault;
mod plan;
mod shadow;
mod trace;

pub use communicator::{DecorateMember, DecoratedMember};
pub use fault::Faulty;
pub use plan::{FaultKind, FaultPlan, Moment, PlannedFault};
pub use shadow::{Agreement, Divergence, Recorded, ShadowLog};
pub use trace::{GroupStep, Lane, Span, TraceLog};

use crate::backend::{
    Backend, Collectives, FusedOps, Kernels, Memory, MemoryInfo, MemoryTraits, Ordinal, Queue, RawCopy,
    RawStream, Segment, Support,
};
use crate::call;
use crate::comm::{CommConfig, CommId, RawCommunicator};
use crate::custom::CustomOp;
use crate::device::DeviceInfo;
use crate::launch::Launch;
use crate::op::{Bind, Op, OpQuery};
use crate::stream::StreamOptions;
use crate::weight::{Consumer, Packing};
use portolan_ops::Result;
use portolan_ops::quant::WeightSpec;
use std::sync::Arc;

/// What a decorator does around the backend it wraps. Every default only forwards.
pub trait Decorate: Send + Sync + 'static {
    /// The wrapped backend.
    fn inner(&self) -> &dyn Backend;

    /// Launches an operator of either half of the table, or a user's own: `forward` hands it to the wrapped backend.
    ///
    /// # Errors
    /// Those of the launch.
    fn launch<C: Bind>(
        &self,
        launch: &Launch<'_>,
        spec: &C,
        op: &dyn Op,
        forward: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let _ = (launch, spec, op);
        forward()
    }

    /// As [`Memory::copy`].
    ///
    /// # Errors
    /// Those of the copy.
    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        self.inner().copy(launch, copy)
    }

    /// As [`Memory::reserve`].
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver`.
    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        self.inner().reserve(device, bytes)
    }

    /// As [`Memory::admit`].
    ///
    /// # Errors
    /// `OutOfMemory`, `Driver`.
    fn admit(&self, device: Ordinal, bytes: usize) -> Result<()> {
        self.inner().admit(device, bytes)
    }

    /// As [`Queue::stream_create`].
    ///
    /// # Errors
    /// `Driver`, `Unavailable`.
    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        self.inner().stream_create(device, options)
    }

    /// As [`Collectives::communicator`]. Operators over ranks are launched by what this gives: a [`DecoratedMember`]
    /// where the decorator has something to do around them.
    ///
    /// # Errors
    /// `Collective`, `Unavailable`.
    fn communicator(&self, device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        self.inner().communicator(device, config)
    }
}

/// A decorator as a backend. It has the wrapped one's name and devices, and answers as it does.
pub struct Decorated<D>(pub(crate) D);

impl<D: Decorate> Decorated<D> {
    /// The backend that `decorator` makes of the one it wraps.
    pub fn new(decorator: D) -> Arc<Self> {
        Arc::new(Self(decorator))
    }

    /// The decorator.
    pub fn decorator(&self) -> &D {
        &self.0
    }
}

impl<D: Decorate> Memory for Decorated<D> {
    fn traits(&self, device: Ordinal) -> MemoryTraits {
        self.0.inner().traits(device)
    }
    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        self.0.reserve(device, bytes)
    }
    fn admit(&self, device: Ordinal, bytes: usize) -> Result<()> {
        self.0.admit(device, bytes)
    }
    fn release(&self, device: Ordinal, segment: Segment) -> Result<()> {
        self.0.inner().release(device, segment)
    }
    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        self.0.copy(launch, copy)
    }
    fn memory_info(&self, device: Ordinal) -> Result<MemoryInfo> {
        self.0.inner().memory_info(device)
    }
}

impl<D: Decorate> Queue for Decorated<D> {
    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        self.0.stream_create(device, options)
    }
}

macro_rules! forward {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl<D: Decorate> Kernels for Decorated<D> {
            $(
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                    self.0.launch(launch, op.spec(), op, &|| self.0.inner().$method(launch, op))
                }
            )*
        }

        impl<D: Decorate> FusedOps for Decorated<D> {
            $(
                fn $fmethod(&self, launch: &Launch<'_>, op: &call::$fkind) -> Result<()> {
                    self.0.launch(launch, op.spec(), op, &|| self.0.inner().$fmethod(launch, op))
                }
            )*

            fn packing(&self, device: Ordinal, weight: &WeightSpec, consumer: Consumer<'_>) -> Option<Packing> {
                self.0.inner().packing(device, weight, consumer)
            }

            fn custom(&self, launch: &Launch<'_>, op: &CustomOp) -> Result<()> {
                self.0.launch(launch, op.spec(), op, &|| self.0.inner().custom(launch, op))
            }
        }
    };
}
crate::for_each_op!(forward);

impl<D: Decorate> Collectives for Decorated<D> {
    fn new_id(&self) -> Result<CommId> {
        self.0.inner().new_id()
    }
    fn communicator(&self, device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        self.0.communicator(device, config)
    }
}

impl<D: Decorate> Backend for Decorated<D> {
    fn name(&self) -> &'static str {
        self.0.inner().name()
    }
    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.0.inner().devices()
    }
    fn support(&self, device: Ordinal, query: &OpQuery<'_>) -> Support {
        self.0.inner().support(device, query)
    }
}
