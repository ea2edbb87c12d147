//! The reference device: the kernel core by its own f64 oracles, every fused operator by its composition.
//!
//! What a new backend is held against, and what proves that the compositions need nothing but the core. Its
//! memory is a map of byte vectors under made-up addresses, so that every access is checked.

use portolan_core::{
    Backend, Collectives, CustomOp, DeviceInfo, Fault, FusedOps, Kernels, Launch, Memory, MemoryInfo,
    MemoryTraits, Op, OpKind, OpQuery, Ordinal, Queue, RawCopy, RawEvent, RawStream, Segment, SpecRef,
    StreamOptions, Support, call, compose,
};
use portolan_ops::kernel::BinaryKind;
use portolan_ops::{Contract, DType, DeviceId, HostTensor, OpError, Result, TensorSpec, Unsupported};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What fresh memory holds: NaN in every float type, so that reading what was never written shows.
const UNWRITTEN: u8 = 0xFF;
/// Bytes the device may use.
const LIMIT: usize = 8 << 30;

/// A backend with one device, `reference:0`, that works while it is called.
pub struct ReferenceBackend {
    memory: Mutex<Space>,
}

/// Segments by address; addresses are never used twice.
struct Space {
    segments: BTreeMap<usize, Vec<u8>>,
    next: usize,
    used: usize,
}

impl ReferenceBackend {
    /// A device of its own.
    pub fn new() -> Arc<Self> {
        let space = Space { segments: BTreeMap::new(), next: 1 << 32, used: 0 };
        Arc::new(Self { memory: Mutex::new(space) })
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the work of an operator by its oracle; a data fault is kept as the stream's.
    fn evaluate<C: Contract>(&self, launch: &Launch<'_>, op: &dyn Op, contract: &C) -> Result<()> {
        if let Some(dtype) = lacking(&op.query(launch.determinism()).spec) {
            let hint = "cast to a type with a host codec";
            return Err(launch.unsupported(op.op_name(), Unsupported::DType(dtype), hint));
        }
        stream_of(launch)?.work(launch, || {
            let mut space = self.space();
            let (mut inputs, mut outputs, mut failure) = (Vec::new(), Vec::new(), None);
            op.operands(&mut |arg| {
                let address = arg.buffer.address();
                if arg.access.reads() {
                    match space.read(address, arg.spec) {
                        Ok(values) => inputs.push(values),
                        Err(error) => failure = Some(error),
                    }
                }
                if arg.access.writes() {
                    outputs.push((address, *arg.spec));
                }
            });
            if let Some(error) = failure {
                return Err(error);
            }
            let inputs: Vec<&[f64]> = inputs.iter().map(Vec::as_slice).collect();
            check_data(&op.query(launch.determinism()).spec, &inputs)?;
            for ((address, spec), values) in outputs.iter().zip(contract.reference(&inputs)) {
                space.write(*address, spec, &values)?;
            }
            Ok(())
        })
    }
}

/// An operand's element type without a host codec, if there is one.
fn lacking(spec: &SpecRef<'_>) -> Option<DType> {
    let mut lacking = None;
    spec.operands(&mut |_, spec, _| {
        if HostTensor::filled(&empty(spec), 0).is_err() {
            lacking = Some(spec.dtype());
        }
    });
    lacking
}

/// A spec of the same type without elements: asks whether the type has a codec.
fn empty(spec: &TensorSpec) -> TensorSpec {
    TensorSpec::of(spec.dtype(), &[0]).unwrap_or(*spec)
}

/// Faults that kernels of the core report: indices past the end, integer division by zero.
fn check_data(spec: &SpecRef<'_>, inputs: &[&[f64]]) -> Result<()> {
    let indexed = |op: &'static str, extent: usize| match inputs[1].iter().find(|&&i| i >= extent as f64) {
        None => Ok(()),
        Some(index) => Err(OpError::Data {
            op: op.into(),
            what: format!("index {index} of {extent} entries, expected one below"),
        }),
    };
    match spec {
        SpecRef::Gather(op) => indexed("gather", op.x().dims()[op.dim()]),
        SpecRef::Scatter(op) => indexed("scatter", op.x().dims()[op.dim()]),
        SpecRef::Binary(op)
            if matches!(op.kind(), BinaryKind::Div | BinaryKind::Rem)
                && !op.out().dtype().is_float()
                && op.b().tensor().is_some()
                && inputs[1].contains(&0.0) =>
        {
            Err(OpError::Data { op: op.kind().name().into(), what: "an integer is divided by 0".into() })
        }
        _ => Ok(()),
    }
}

impl Space {
    /// The bytes from `address` on, `len` of them.
    fn range(&mut self, address: usize, len: usize) -> Result<&mut [u8]> {
        let outside =
            || OpError::internal("memory", format!("{len} bytes at {address:#x} are not allocated"));
        let (start, bytes) = self.segments.range_mut(..=address).next_back().ok_or_else(outside)?;
        let from = address - start;
        let end = from.checked_add(len).filter(|&end| end <= bytes.len()).ok_or_else(outside)?;
        Ok(&mut bytes[from..end])
    }

    fn read(&mut self, address: usize, spec: &TensorSpec) -> Result<Vec<f64>> {
        if spec.numel() == 0 {
            return Ok(Vec::new());
        }
        let bytes = self.range(address, spec.span_bytes())?.to_vec();
        Ok(HostTensor::from_bytes(spec, bytes)?.to_f64())
    }

    /// Writes the elements and nothing between them.
    fn write(&mut self, address: usize, spec: &TensorSpec, values: &[f64]) -> Result<()> {
        if spec.numel() == 0 {
            return Ok(());
        }
        if spec.is_contiguous() && !spec.dtype().is_sub_byte() {
            let tensor = HostTensor::from_f64(spec, values, 0)?;
            let first = spec.span_bytes() - spec.dtype().bytes_for(spec.numel());
            self.range(address, spec.span_bytes())?[first..].copy_from_slice(&tensor.bytes()[first..]);
            return Ok(());
        }
        // Encoded over zeros and over ones: bits that come out alike belong to an element.
        let [zeros, ones] = [0x00, 0xFF].map(|fill| HostTensor::from_f64(spec, values, fill));
        let (zeros, ones) = (zeros?, ones?);
        let bytes = self.range(address, spec.span_bytes())?;
        for (byte, (&zero, &one)) in bytes.iter_mut().zip(zeros.bytes().iter().zip(ones.bytes())) {
            let element = !(zero ^ one);
            *byte = (zero & element) | (*byte & !element);
        }
        Ok(())
    }
}

impl Memory for ReferenceBackend {
    fn traits(&self, _device: Ordinal) -> MemoryTraits {
        MemoryTraits { alignment: 64, tail_padding: 0 }
    }

    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        let space = &mut *self.space();
        let mut segment = Vec::new();
        if bytes > LIMIT - space.used || segment.try_reserve_exact(bytes).is_err() {
            return Err(OpError::OutOfMemory {
                device: DeviceId::new("reference", device),
                requested: bytes,
                free: LIMIT - space.used,
                total: LIMIT,
                holders: Vec::new(),
            });
        }
        segment.resize(bytes, UNWRITTEN);
        let address = space.next;
        // A gap between segments, so that no range spans two.
        space.next += bytes.next_multiple_of(64) + 4096;
        space.used += bytes;
        space.segments.insert(address, segment);
        Ok(Segment { address, bytes, handle: Box::new(()) })
    }

    fn release(&self, _device: Ordinal, segment: Segment) -> Result<()> {
        let space = &mut *self.space();
        match space.segments.remove(&segment.address) {
            Some(_) => space.used -= segment.bytes,
            None => return Err(OpError::internal("release", "the segment is not one of this backend")),
        }
        Ok(())
    }

    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        stream_of(launch)?.work(launch, || {
            let space = &mut *self.space();
            match copy {
                RawCopy::Upload { host, address } => {
                    let device = space.range(address, host.len())?;
                    // SAFETY: the copy's host memory is its own until the copy is done, which it is on return.
                    device.copy_from_slice(unsafe { host.bytes_unchecked() });
                }
                RawCopy::Download { address, host } => {
                    let device = space.range(address, host.len())?;
                    // SAFETY: `host` is as long as the range, and nobody else reads or writes it before the
                    // copy's event.
                    unsafe { core::ptr::copy_nonoverlapping(device.as_ptr(), host.address(), device.len()) };
                }
            }
            Ok(())
        })
    }

    fn memory_info(&self, _device: Ordinal) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: LIMIT - self.space().used, total: LIMIT })
    }
}

/// A queue that is always empty: work is done while it is enqueued.
struct ReferenceStream {
    fault: Mutex<Option<Fault>>,
}

impl ReferenceStream {
    fn fault(&self) -> MutexGuard<'_, Option<Fault>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the work unless an earlier one failed.
    fn work(&self, launch: &Launch<'_>, task: impl FnOnce() -> Result<()>) -> Result<()> {
        let fault = &mut *self.fault();
        if fault.is_none()
            && let Err(error) = task()
        {
            *fault = Some(Fault { seq: launch.seq(), op: launch.op_name(), source: Arc::new(error) });
        }
        Ok(())
    }
}

fn stream_of<'l>(launch: &'l Launch<'_>) -> Result<&'l ReferenceStream> {
    let stream = launch.raw().as_any().downcast_ref();
    stream.ok_or_else(|| OpError::internal(launch.op_name(), "the stream is not one of this backend"))
}

impl RawStream for ReferenceStream {
    fn record(&self) -> Result<Arc<dyn RawEvent>> {
        Ok(Arc::new(ReferenceEvent { at: Instant::now() }))
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
        self.fault().clone()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct ReferenceEvent {
    at: Instant,
}

impl RawEvent for ReferenceEvent {
    fn is_complete(&self) -> bool {
        true
    }
    fn synchronize(&self, _timeout: Duration) -> Result<()> {
        Ok(())
    }
    fn elapsed_since(&self, start: &dyn RawEvent) -> Option<Duration> {
        let start = start.as_any().downcast_ref::<ReferenceEvent>()?;
        Some(self.at.saturating_duration_since(start.at))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Queue for ReferenceBackend {
    fn stream_create(&self, _device: Ordinal, _options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        Ok(Arc::new(ReferenceStream { fault: Mutex::new(None) }))
    }
}

macro_rules! kernels {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Kernels for ReferenceBackend {
            $(
                fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                    self.evaluate(launch, op, op.spec())
                }
            )*
        }
    };
}
portolan_core::for_each_op!(kernels);

impl FusedOps for ReferenceBackend {
    /// Needs no kernel: the oracle is one.
    fn custom(&self, launch: &Launch<'_>, op: &CustomOp) -> Result<()> {
        self.evaluate(launch, op, op.spec())
    }
}

impl Collectives for ReferenceBackend {}

impl Backend for ReferenceBackend {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        Ok(vec![DeviceInfo {
            id: DeviceId::new("reference", 0),
            name: "f64 oracles".into(),
            memory_bytes: LIMIT,
            flushes_denormals: false,
            keeps_data: true,
        }])
    }

    fn support(&self, _device: Ordinal, query: &OpQuery<'_>) -> Support {
        match (query.spec.kind(), lacking(&query.spec)) {
            (_, Some(lacking)) => Support::No(Unsupported::DType(lacking)),
            (OpKind::Collective(_), _) => Support::No(Unsupported::NotImplemented),
            (kind, _) if kind.is_fused() => compose::support(query, Unsupported::NotImplemented),
            _ => Support::Native,
        }
    }
}
