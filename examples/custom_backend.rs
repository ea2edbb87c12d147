//! A backend of one's own in one file: f32 and i32, plain loops, one thread a stream. Other types are `No(DType)`.
//!
//! `cargo run --release --example custom_backend` holds it against the conformance suite and prints a summary.
//! Memory is a map of byte vectors under made-up addresses, so that even a wrong kernel cannot harm the process.

use portolan_conformance::Suite;
use portolan_core::*;
use portolan_ops::kernel::{BinaryKind, GatherForm, GemmForm, ReduceKind, Rhs, nan_greatest};
use portolan_ops::{Contract, DType, DeviceId, OpError, OpName, Result, TensorSpec, Unsupported};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{any::Any, collections::BTreeMap, process::ExitCode, sync::mpsc};

/// Bytes the device may use.
const LIMIT: usize = 1 << 30;

fn main() -> ExitCode {
    let report = Suite::new(|| Ok(ToyBackend::new())).run();
    println!("{report}");
    ExitCode::from(u8::from(report.failures().next().is_some()))
}

/// Locks even when another thread panicked while it held the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A backend with one device, `toy:0`.
pub struct ToyBackend(Arc<Mutex<Space>>);

/// Segments by address; addresses are never used twice.
#[derive(Default)]
struct Space {
    segments: BTreeMap<usize, Vec<u8>>,
    next: usize,
    used: usize,
}
impl Space {
    fn bytes(&mut self, address: usize, len: usize) -> Result<&mut [u8]> {
        let segment = self.segments.range_mut(..=address).next_back();
        let bytes = segment.and_then(|(start, bytes)| bytes.get_mut(address - start..)?.get_mut(..len));
        let bytes = if len == 0 { Some(&mut [][..]) } else { bytes };
        bytes.ok_or_else(|| OpError::internal("memory", format!("{len} bytes at {address:#x} are not there")))
    }
    /// The elements in logical order. Both types are exact in f64.
    fn read(&mut self, address: usize, spec: &TensorSpec) -> Result<Vec<f64>> {
        let bytes = self.bytes(address, spec.span_bytes())?;
        let word = |at: usize| [0, 1, 2, 3].map(|byte| bytes[4 * at + byte]);
        let float = spec.dtype() == DType::F32;
        let decode = |w| if float { f32::from_le_bytes(w).into() } else { i32::from_le_bytes(w).into() };
        Ok(places(spec).into_iter().map(|at| decode(word(at))).collect())
    }
    /// Floats are rounded, integers wrap.
    fn write(
        &mut self,
        address: usize,
        spec: &TensorSpec,
        values: impl IntoIterator<Item = f64>,
    ) -> Result<()> {
        let (bytes, float) = (self.bytes(address, spec.span_bytes())?, spec.dtype() == DType::F32);
        for (at, value) in places(spec).into_iter().zip(values) {
            let word = if float { (value as f32).to_le_bytes() } else { (value as i64 as i32).to_le_bytes() };
            bytes[4 * at..4 * at + 4].copy_from_slice(&word);
        }
        Ok(())
    }
}

/// Where each element lies, in logical order, in elements from the start of the allocation.
fn places(spec: &TensorSpec) -> Vec<usize> {
    spec.dims().iter().zip(spec.strides()).fold(vec![spec.layout().offset()], |places, (&dim, &stride)| {
        places.iter().flat_map(|place| (0..dim).map(move |i| place + i * stride)).collect()
    })
}

impl ToyBackend {
    /// A device of its own.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Arc::new(Mutex::new(Space { next: 1 << 20, ..Space::default() }))))
    }
    /// Overwrites device memory at once.
    pub fn poke(&self, address: usize, data: &[u8]) -> Result<()> {
        lock(&self.0).bytes(address, data.len()).map(|bytes| bytes.copy_from_slice(data))
    }
}

impl Memory for ToyBackend {
    fn traits(&self, _device: Ordinal) -> MemoryTraits {
        MemoryTraits { alignment: 64, tail_padding: 0 }
    }
    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        let space = &mut *lock(&self.0);
        let free = LIMIT - space.used;
        if bytes > free {
            let (device, holders) = (DeviceId::new("toy", device), Vec::new());
            return Err(OpError::OutOfMemory { device, requested: bytes, free, total: LIMIT, holders });
        }
        let address = space.next;
        space.next += bytes.next_multiple_of(64) + 4096; // A gap, so that no access spans two segments.
        space.used += bytes;
        space.segments.insert(address, vec![0xFF; bytes]);
        Ok(Segment { address, bytes, handle: Box::new(()) })
    }
    fn release(&self, _device: Ordinal, segment: Segment) -> Result<()> {
        let space = &mut *lock(&self.0);
        space
            .segments
            .remove(&segment.address)
            .ok_or_else(|| OpError::internal("release", "no such segment"))?;
        space.used -= segment.bytes;
        Ok(())
    }
    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        let toy = Self(self.0.clone());
        stream_of(launch)?.work(launch.seq(), launch.op_name(), move || match copy {
            // SAFETY: nobody writes the host memory of an upload before the copy is done, which is here.
            RawCopy::Upload { host, address } => toy.poke(address, unsafe { host.bytes_unchecked() }),
            RawCopy::Download { address, host } => {
                let space = &mut *lock(&toy.0);
                let data = space.bytes(address, host.len())?;
                // SAFETY: `host` is as long as `data`, and nobody else touches it before the copy's event.
                unsafe { core::ptr::copy_nonoverlapping(data.as_ptr(), host.address(), data.len()) };
                Ok(())
            }
        })
    }
    fn memory_info(&self, _device: Ordinal) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: LIMIT - lock(&self.0).used, total: LIMIT })
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread that works off what it is sent, in order. It ends when the stream is dropped.
struct ToyStream {
    jobs: mpsc::Sender<Job>,
    waiting: Arc<AtomicUsize>,
    fault: Arc<Mutex<Option<Fault>>>,
    timeout: Duration,
}
impl ToyStream {
    fn send(&self, job: Job) -> Result<()> {
        self.waiting.fetch_add(1, SeqCst);
        self.jobs.send(job).map_err(|_| OpError::internal("stream", "its thread has ended"))
    }
    /// Enqueues work, which is skipped once earlier work has failed.
    fn work(&self, seq: u64, op: OpName, task: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        let fault = self.fault.clone();
        self.send(Box::new(move || {
            let healthy = lock(&fault).is_none();
            if healthy && let Err(error) = task() {
                *lock(&fault) = Some(Fault { seq, op, source: Arc::new(error) });
            }
        }))
    }
}

fn stream_of<'l>(launch: &'l Launch<'_>) -> Result<&'l ToyStream> {
    let stream = launch.raw().as_any().downcast_ref();
    stream.ok_or_else(|| OpError::internal(launch.op_name(), "the stream is not one of this backend"))
}

impl Queue for ToyBackend {
    fn stream_create(&self, _device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let done = waiting.clone();
        std::thread::spawn(move || {
            for job in queue {
                job();
                done.fetch_sub(1, SeqCst);
            }
        });
        Ok(Arc::new(ToyStream { jobs, waiting, fault: Arc::default(), timeout: options.timeout }))
    }
}

impl RawStream for ToyStream {
    fn record(&self) -> Result<Arc<dyn RawEvent>> {
        let event = Arc::new(ToyEvent::default());
        let reached = event.clone();
        self.send(Box::new(move || {
            *lock(&reached.at) = Some(Instant::now());
            reached.signal.notify_all();
        }))?;
        Ok(event)
    }
    fn wait(&self, event: &Arc<dyn RawEvent>, seq: u64) -> Result<()> {
        let (event, timeout) = (event.clone(), self.timeout);
        self.work(seq, "wait".into(), move || event.synchronize(timeout))
    }
    fn is_idle(&self) -> bool {
        self.waiting.load(SeqCst) == 0
    }
    fn synchronize(&self, timeout: Duration) -> Result<()> {
        self.record()?.synchronize(timeout)
    }
    fn fault(&self) -> Option<Fault> {
        lock(&self.fault).clone()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[derive(Default)]
struct ToyEvent {
    at: Mutex<Option<Instant>>,
    signal: Condvar,
}
impl RawEvent for ToyEvent {
    fn is_complete(&self) -> bool {
        lock(&self.at).is_some()
    }
    fn synchronize(&self, timeout: Duration) -> Result<()> {
        let waited = self.signal.wait_timeout_while(lock(&self.at), timeout, |at| at.is_none());
        let late = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        let error = OpError::Timeout { what: "a toy stream".into(), after: timeout };
        if late { Err(error) } else { Ok(()) }
    }
    fn elapsed_since(&self, start: &dyn RawEvent) -> Option<Duration> {
        let start = (*lock(&start.as_any().downcast_ref::<ToyEvent>()?.at))?;
        Some((*lock(&self.at))?.saturating_duration_since(start))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Why this device cannot do an operator, if so. Asked by `support` and before every launch.
fn limit(spec: &SpecRef<'_>) -> Option<Unsupported> {
    let mut foreign = None;
    spec.operands(&mut |_, spec, _| {
        foreign = foreign.or(Some(spec.dtype()).filter(|d| !matches!(d, DType::F32 | DType::I32)));
    });
    let possible = match spec {
        SpecRef::Linear(op) => op.act_quant() == portolan_ops::ActQuant::None,
        SpecRef::Rope(_) | SpecRef::RmsNorm(_) | SpecRef::AddRmsNorm(_) | SpecRef::Swiglu(_) => true,
        SpecRef::Scan(_) | SpecRef::TopK(_) | SpecRef::Scatter(_) | SpecRef::Random(_) => false,
        SpecRef::Collective(_) => false,
        spec => !spec.kind().is_fused() || matches!(spec, SpecRef::Embedding(_)),
    };
    // Nobody wrote those loops, and the other compositions compare, which gives bool.
    foreign.map(Unsupported::DType).or((!possible).then_some(Unsupported::NotImplemented))
}

fn refuse(launch: &Launch<'_>, op: &dyn Op) -> Result<()> {
    let reason = limit(&op.query(launch.determinism()).spec);
    reason.map_or(Ok(()), |reason| Err(launch.unsupported(op.op_name(), reason, "cast to f32 or i32")))
}

macro_rules! operators {
    (kernel { $( $(#[$doc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
     fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }) => {
        impl Kernels for ToyBackend {
            $( fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                refuse(launch, op)?;
                let (mut list, spec, space) = (Vec::new(), op.spec().clone(), self.0.clone());
                spec.operands(&mut |o| list.extend(op.address(o.name).map(|at| (o.name, at, *o.spec))));
                stream_of(launch)?.work(launch.seq(), launch.op_name(), move || {
                    compute(spec.spec_ref(), &mut Operands { space: &mut lock(&space), list })
                })
            } )*
        }
        impl FusedOps for ToyBackend {
            $( fn $fmethod(&self, launch: &Launch<'_>, op: &call::$fkind) -> Result<()> {
                refuse(launch, op).and_then(|()| compose::$fmethod(launch, op, Unsupported::NotImplemented))
            } )*
        }
    };
}
portolan_core::for_each_op!(operators);

/// The operands of one launch, while the memory is locked.
struct Operands<'a> {
    space: &'a mut Space,
    list: Vec<(&'static str, usize, TensorSpec)>,
}
impl Operands<'_> {
    /// An operand seen through a view of it; nothing when it is absent.
    fn view(&mut self, name: &str, view: impl Fn(&TensorSpec) -> Result<TensorSpec>) -> Result<Vec<f64>> {
        let found = self.list.iter().find(|(known, ..)| *known == name);
        found.map_or(Ok(Vec::new()), |(_, address, spec)| self.space.read(*address, &view(spec)?))
    }
    fn read(&mut self, name: &str) -> Result<Vec<f64>> {
        self.view(name, |spec| Ok(*spec))
    }
    fn write(&mut self, name: &str, values: impl IntoIterator<Item = f64>) -> Result<()> {
        let found = self.list.iter().find(|(known, ..)| *known == name);
        found.map_or(Ok(()), |(_, address, spec)| self.space.write(*address, spec, values))
    }
}

/// A product; of integers, wrapped.
fn times(dtype: DType, a: f64, b: f64) -> f64 {
    if dtype == DType::I32 { (a as i32).wrapping_mul(b as i32).into() } else { a * b }
}

fn compute(spec: SpecRef<'_>, o: &mut Operands<'_>) -> Result<()> {
    match spec {
        SpecRef::Gemm(op) => {
            let (m, n, k, shape) = (op.m(), op.n(), op.k(), op.out().shape());
            let (a, b) = (o.read("a")?, o.read("b")?);
            let (c, bias) =
                (o.view("c", |x| x.broadcast_to(shape))?, o.view("bias", |x| x.broadcast_to(shape))?);
            let b_batch = if op.b().rank() == 2 { 0 } else { k * n };
            let (a_row, a_k) = if op.form() == GemmForm::Tn { (1, m) } else { (k, 1) };
            let (b_k, b_column) = if op.form() == GemmForm::Nt { (1, k) } else { (n, 1) };
            let element = |i: usize| {
                let a0 = i / (m * n) * m * k + i / n % m * a_row;
                let b0 = i / (m * n) * b_batch + i % n * b_column;
                let sum: f64 = (0..k).map(|j| a[a0 + j * a_k] * b[b0 + j * b_k]).sum();
                let added = f64::from(op.beta()) * c.get(i).unwrap_or(&0.0) + bias.get(i).unwrap_or(&0.0);
                op.activation().apply(f64::from(op.alpha()) * sum + added)
            };
            o.write("out", (0..shape.numel()).map(element))
        }
        SpecRef::Unary(op) => {
            o.read("x").and_then(|x| o.write("out", x.into_iter().map(|x| op.kind().apply(x))))
        }
        SpecRef::Binary(op) => {
            let (dtype, shape, kind) = (op.out().dtype(), op.out().shape(), op.kind());
            let a = o.view("a", |x| x.broadcast_to(shape))?;
            let b = match op.b() {
                Rhs::Tensor(_) => o.view("b", |x| x.broadcast_to(shape))?,
                Rhs::Scalar(value) => vec![*value; a.len()],
            };
            let divides = dtype == DType::I32 && matches!(kind, BinaryKind::Div | BinaryKind::Rem);
            if divides && b.contains(&0.0) {
                let what = "an integer is divided by 0".into();
                return Err(OpError::Data { op: kind.name().into(), what });
            }
            let f = |(a, b)| if kind == BinaryKind::Mul { times(dtype, a, b) } else { kind.apply(a, b) };
            o.write("out", a.into_iter().zip(b).map(f))
        }
        SpecRef::Reduce(op) => {
            // Reduced dimensions go last, so that each result is made of one run.
            let (last, first): (Vec<usize>, _) = (0..op.x().rank()).partition(|&dim| op.is_reduced(dim));
            let x = o.view("x", |x| x.permute(&[&first[..], &last].concat()))?;
            let n = op.count();
            let order = |run: &[f64], i: &usize, j: &usize| nan_greatest(run[*i], run[*j]);
            let extreme = |run: &[f64], kind: BinaryKind| run.iter().fold(run[0], |a, &b| kind.apply(a, b));
            let reduce = |run: &[f64]| match op.kind() {
                ReduceKind::Prod => run.iter().fold(1.0, |product, &v| times(op.x().dtype(), product, v)),
                ReduceKind::Mean => run.iter().sum::<f64>() / run.len() as f64,
                ReduceKind::Max => extreme(run, BinaryKind::Max),
                ReduceKind::Min => extreme(run, BinaryKind::Min),
                // The first of equals: `max_by` takes the last, `min_by` the first.
                ReduceKind::ArgMax => (0..n).rev().max_by(|i, j| order(run, i, j)).unwrap_or(0) as f64,
                ReduceKind::ArgMin => (0..n).min_by(|i, j| order(run, i, j)).unwrap_or(0) as f64,
                _ => run.iter().sum(),
            };
            o.write("out", (0..op.out().numel()).map(|i| reduce(&x[i * n..(i + 1) * n])))
        }
        SpecRef::Gather(op) => {
            let (x, index, dims) = (o.read("x")?, o.read("index")?, &op.x().dims()[op.dim()..]);
            let (extent, inner) = (dims[0], dims[1..].iter().product::<usize>());
            let slices = op.form() == GatherForm::Slices;
            let count = if slices { index.len() } else { op.index().dims()[op.dim()] };
            if let Some(at) = index.iter().find(|at| **at >= extent as f64) {
                let what = format!("index {at} of {extent} entries, expected one below");
                return Err(OpError::Data { op: "gather".into(), what });
            }
            // Negative indices stand for no entry.
            let element = |i: usize| {
                let at = if slices { index[i / inner % count] } else { index[i] };
                let from = i / (count * inner) * extent + at as usize;
                if at < 0.0 { 0.0 } else { x[from * inner + i % inner] }
            };
            o.write("out", (0..op.out().numel()).map(element))
        }
        SpecRef::Copy(_) => o.read("x").and_then(|x| o.write("out", x)),
        SpecRef::Cast(op) => {
            let (x, whole) = (o.read("x")?, op.out().dtype() == DType::I32);
            // Floats become integers by truncation, and saturate.
            o.write("out", x.into_iter().map(|x| if whole { (x as i32).into() } else { x }))
        }
        SpecRef::Fill(op) => o.write("out", vec![op.value(); op.out().numel()]),
        other => Err(OpError::internal(other.kind().name(), "was to be refused")),
    }
}

impl Collectives for ToyBackend {}
impl Backend for ToyBackend {
    fn name(&self) -> &'static str {
        "toy"
    }
    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        let (id, name) = (DeviceId::new("toy", 0), "plain loops".into());
        Ok(vec![DeviceInfo { id, name, memory_bytes: LIMIT, flushes_denormals: false, keeps_data: true }])
    }
    fn support(&self, _device: Ordinal, query: &OpQuery<'_>) -> Support {
        match limit(&query.spec) {
            Some(limit) => Support::No(limit),
            None if query.spec.kind().is_fused() => compose::support(query, Unsupported::NotImplemented),
            None => Support::Native,
        }
    }
}
