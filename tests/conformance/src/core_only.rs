//! A backend reduced to its kernel core: its fused operators are composed, whatever it overrides.
//!
//! Run beside the backend itself it shows that an override and its composition agree on one device.

use portolan_core::{
    Backend, Collectives, DeviceInfo, FusedOps, Kernels, Launch, Memory, MemoryInfo, MemoryTraits, OpKind,
    OpQuery, Ordinal, Queue, RawCopy, RawStream, Segment, StreamOptions, Support, call, compose,
};
use portolan_ops::{Result, Unsupported};
use std::sync::Arc;

/// The memory, queues and kernel core of another backend, and nothing else of it.
pub struct CoreOnly {
    inner: Arc<dyn Backend>,
}

impl CoreOnly {
    /// What is left of `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Self { inner })
    }
}

impl Memory for CoreOnly {
    fn traits(&self, device: Ordinal) -> MemoryTraits {
        self.inner.traits(device)
    }
    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        self.inner.reserve(device, bytes)
    }
    fn release(&self, device: Ordinal, segment: Segment) -> Result<()> {
        self.inner.release(device, segment)
    }
    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        self.inner.copy(launch, copy)
    }
    fn memory_info(&self, device: Ordinal) -> Result<MemoryInfo> {
        self.inner.memory_info(device)
    }
}

impl Queue for CoreOnly {
    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        self.inner.stream_create(device, options)
    }
}

macro_rules! kernels {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Kernels for CoreOnly {
            $(
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                    self.inner.$method(launch, op)
                }
            )*
        }
    };
}
portolan_core::for_each_op!(kernels);

impl FusedOps for CoreOnly {}

impl Collectives for CoreOnly {}

impl Backend for CoreOnly {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.inner.devices()
    }

    fn support(&self, device: Ordinal, query: &OpQuery<'_>) -> Support {
        match query.spec.kind() {
            OpKind::Custom | OpKind::Collective(_) => Support::No(Unsupported::NotImplemented),
            kind if kind.is_fused() => compose::support(query, Unsupported::NotImplemented),
            _ => self.inner.support(device, query),
        }
    }
}
