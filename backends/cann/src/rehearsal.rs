//! What launching would do, found by doing it where nothing is done: a device that calls no kernel.
//!
//! Whether a composition runs depends on every part of it. Instead of a table of what compositions are made of, which
//! would drift from them, the operator is launched on a device without memory. Each part goes the same way as on the
//! real one, by the same plan, as far as to the vendor's functions: those are only looked up.

use crate::aclnn::Run;
use crate::driver::Driver;
use crate::op::{self, Native};
use portolan_core::sync::atomic::{AtomicUsize, Ordering};
use portolan_core::{
    Backend, Call, CollectiveRef, Collectives, CommConfig, CommId, Communicator, Consumer, DeviceInfo, Fault,
    FusedOps, Kernels, Launch, Memory, MemoryInfo, MemoryTraits, OpQuery, Ordinal, Packing, Queue,
    RawCommunicator, RawCopy, RawEvent, RawStream, Registry, Segment, SpecRef, Stream, StreamOptions,
    Support, Tensor, call, compose,
};
use portolan_ops::comm::{Collective, Ranks};
use portolan_ops::quant::WeightSpec;
use portolan_ops::{Determinism, DeviceId, OpError, Operand, Result, Unsupported};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// The device's name; it is in no registry but its own.
const NAME: &str = "rehearsal";
/// Bytes it pretends to have, and the first address: one that no process maps.
const BYTES: usize = 1 << 48;
const FIRST: usize = 1 << 56;
const ALIGNMENT: usize = 64;

/// What a backend answers for an operator.
pub(crate) fn support(driver: &Arc<Driver>, query: &OpQuery<'_>) -> Support {
    // On a thread of its own: a program may ask while it records a graph, and then may use no other stream.
    let answer = std::thread::scope(|threads| threads.spawn(|| rehearse(driver, query)).join());
    match answer {
        Ok(Ok(answer)) => answer,
        Ok(Err(OpError::Unsupported { reason, .. })) => Support::No(reason),
        // Nothing else can go wrong here; a device that cannot be asked does nothing.
        Ok(Err(_)) | Err(_) => Support::No(Unsupported::NotImplemented),
    }
}

macro_rules! rehearse {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        fn rehearse(driver: &Arc<Driver>, query: &OpQuery<'_>) -> Result<Support> {
            match query.spec {
                $( SpecRef::$kind(spec) => launched(driver, query.determinism, spec), )*
                $( SpecRef::$fkind(spec) => launched(driver, query.determinism, spec), )*
                SpecRef::Collective(_) => Ok(match crate::comm::plan(driver, query.determinism, query) {
                    Ok(()) => Support::Native,
                    Err(why) => composed(driver, query, why)?,
                }),
                _ => Ok(Support::No(Unsupported::NotImplemented)),
            }
        }

        impl Kernels for Rehearsal {
            $(
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                    op::kernel(&Run::rehearse(&self.driver, launch), op)
                }
            )*
        }

        impl FusedOps for Rehearsal {
            $(
                fn $fmethod(&self, launch: &Launch<'_>, op: &call::$fkind) -> Result<()> {
                    op::fused(&Run::rehearse(&self.driver, launch), op, compose::$fmethod)
                }
            )*

            fn packing(&self, _device: Ordinal, weight: &WeightSpec, consumer: Consumer<'_>) -> Option<Packing> {
                op::prepack::packing(&self.driver, weight, consumer)
            }
        }
    };
}
portolan_core::for_each_op!(rehearse);

/// What becomes of an operator over ranks that the device has no kernel for: one of them has a composition.
fn composed(driver: &Arc<Driver>, query: &OpQuery<'_>, why: Unsupported) -> Result<Support> {
    let SpecRef::Collective(CollectiveRef::ExpertParallelFfn(spec)) = query.spec else {
        return Ok(Support::No(why));
    };
    let (determinism, ranks) = (query.determinism, spec.ranks());
    let stream = stream(driver, determinism)?;
    let (rank, world_size, timeout) = (ranks.rank(), ranks.world_size(), Duration::ZERO);
    let config = CommConfig { id: CommId([0; 16]), rank, world_size, timeout, determinism };
    let comm = Communicator::join(&stream, &config)?;
    let tensors = blanks(&stream, &|visit| spec.operands(visit))?;
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    stream.run(call::ExpertParallelFfn::bind(&comm, spec.clone(), &tensors)?)?;
    Ok(Support::Composed(why))
}

/// Launches an operator, and says what became of it.
fn launched<C: Native>(driver: &Arc<Driver>, determinism: Determinism, spec: &C) -> Result<Support> {
    let why = spec.plan(&driver.soc(determinism)).err();
    if let Some(why) = &why
        && !C::KIND.is_fused()
        && !spec.stands_in(why)
    {
        // Also where there is nothing to do, which needs no kernel: the answer is about the operator.
        return Ok(Support::No(why.clone()));
    }
    let stream = stream(driver, determinism)?;
    let tensors = blanks(&stream, &|visit| spec.operands(visit))?;
    let tensors: Vec<&Tensor> = tensors.iter().collect();
    stream.run(Call::bind(spec.clone(), &tensors)?)?;
    Ok(why.map_or(Support::Native, Support::Composed))
}

/// A stream of a device that does nothing.
fn stream(driver: &Arc<Driver>, determinism: Determinism) -> Result<Stream> {
    let backend = Arc::new(Rehearsal { driver: driver.clone(), next: AtomicUsize::new(FIRST) });
    let device = Registry::new().with(backend).open(NAME)?;
    device.stream(StreamOptions { determinism, ..StreamOptions::default() })
}

/// Receives each operand.
type Visit<'a, 's> = &'a mut dyn FnMut(Operand<'s>);

/// A tensor for each operand.
fn blanks<'s>(stream: &Stream, operands: &dyn Fn(Visit<'_, 's>)) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    operands(&mut |operand| tensors.push(stream.empty(operand.spec)));
    tensors.into_iter().collect()
}

/// A device without memory.
struct Rehearsal {
    driver: Arc<Driver>,
    next: AtomicUsize,
}

impl Memory for Rehearsal {
    fn traits(&self, _device: Ordinal) -> MemoryTraits {
        MemoryTraits { alignment: ALIGNMENT, tail_padding: 0 }
    }

    fn reserve(&self, _device: Ordinal, bytes: usize) -> Result<Segment> {
        let whole = bytes.next_multiple_of(ALIGNMENT);
        Ok(Segment { address: self.next.fetch_add(whole, Ordering::Relaxed), bytes, handle: Box::new(()) })
    }

    fn release(&self, _device: Ordinal, _segment: Segment) -> Result<()> {
        Ok(())
    }

    fn copy(&self, _launch: &Launch<'_>, _copy: RawCopy) -> Result<()> {
        Ok(())
    }

    fn memory_info(&self, _device: Ordinal) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: BYTES, total: BYTES })
    }
}

impl Queue for Rehearsal {
    fn stream_create(&self, _device: Ordinal, _options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        Ok(Arc::new(Nowhere))
    }
}

impl Collectives for Rehearsal {
    fn communicator(&self, _device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        Ok(Arc::new(Nobody(Ranks::new(config.rank, config.world_size)?)))
    }
}

/// A group that nobody else is in, whatever its size.
struct Nobody(Ranks);

macro_rules! communicator {
    ($( $(#[$doc:meta])* $kind:ident, $spec:ty, $method:ident; )*) => {
        impl RawCommunicator for Nobody {
            fn ranks(&self) -> Ranks {
                self.0
            }

            fn split(&self, _color: Option<u32>, _key: u32) -> Result<Option<Arc<dyn RawCommunicator>>> {
                Ok(None)
            }

            fn abort(&self, _why: &str) {}

            fn health(&self) -> Result<()> {
                Ok(())
            }

            $(
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                    let op: &dyn Any = op;
                    match op.downcast_ref::<call::ExpertParallelFfn>() {
                        Some(op) => compose::expert_parallel_ffn(launch, op, Unsupported::NotImplemented),
                        None => Ok(()),
                    }
                }
            )*
        }
    };
}
portolan_core::for_each_collective!(communicator);

impl Backend for Rehearsal {
    fn name(&self) -> &'static str {
        NAME
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        Ok(vec![DeviceInfo {
            id: DeviceId::new(NAME, 0),
            name: "plans only".into(),
            memory_bytes: BYTES,
            flushes_denormals: false,
            keeps_data: false,
        }])
    }

    fn support(&self, _device: Ordinal, query: &OpQuery<'_>) -> Support {
        support(&self.driver, query)
    }
}

/// A stream, and a point of it, that are always at their end.
struct Nowhere;

impl RawStream for Nowhere {
    fn record(&self) -> Result<Arc<dyn RawEvent>> {
        Ok(Arc::new(Nowhere))
    }

    fn wait(&self, _event: &Arc<dyn RawEvent>, _seq: u64) -> Result<()> {
        Ok(())
    }

    fn is_idle(&self) -> bool {
        true
    }

    fn synchronize(&self, _timeout: Duration) -> Result<()> {
        Ok(())
    }

    fn fault(&self) -> Option<Fault> {
        None
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl RawEvent for Nowhere {
    fn is_complete(&self) -> bool {
        true
    }

    fn synchronize(&self, _timeout: Duration) -> Result<()> {
        Ok(())
    }

    fn elapsed_since(&self, _start: &dyn RawEvent) -> Option<Duration> {
        Some(Duration::ZERO)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
