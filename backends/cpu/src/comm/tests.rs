//! What only the inside can do to a group: a transport that fails while it moves data.

use super::member::CpuCommunicator;
use super::transport::{Announcement, Transport, Window};
use crate::{CpuBackend, CpuOptions, Executor};
use portolan_core::call::{AllReduce, Barrier};
use portolan_core::meeting::{At, Stop};
use portolan_core::sync::atomic::{AtomicUsize, Ordering};
use portolan_core::{
    Backend, Collectives, CommConfig, CommId, Communicator, Device, DeviceInfo, FusedOps, Kernels, Launch,
    Memory, MemoryInfo, MemoryTraits, OpQuery, Ordinal, Queue, RawCommunicator, RawCopy, RawStream, Registry,
    Segment, Stream, StreamOptions, Support, Tensor, call,
};
use portolan_ops::comm::Ranks;
use portolan_ops::{Determinism, OpError, Result, Shape};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a rank dies in its n-th read of a peer's memory.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// Its thread unwinds.
    Panic,
    /// It is stuck for longer than the others wait.
    Stuck(Duration),
}

/// A transport that fails while it moves data.
struct Failing {
    inner: Box<dyn Transport>,
    death: Death,
    /// Reads until it happens.
    left: AtomicUsize,
}

impl Transport for Failing {
    fn ranks(&self) -> Ranks {
        self.inner.ranks()
    }
    fn meet(&self, at: At, post: Announcement, timeout: Duration) -> Result<Vec<Arc<Announcement>>, Stop> {
        self.inner.meet(at, post, timeout)
    }
    fn fence(&self, at: At, timeout: Duration) -> Result<(), Stop> {
        self.inner.fence(at, timeout)
    }
    unsafe fn read(
        &self,
        peer: usize,
        window: Window,
        place: usize,
        into: *mut u8,
        bytes: usize,
    ) -> Result<(), Stop> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            match self.death {
                Death::Panic => std::panic::resume_unwind(Box::new("died in a reduction")),
                Death::Stuck(time) => std::thread::sleep(time),
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.inner.read(peer, window, place, into, bytes) }
    }
    fn close(&self) {
        self.inner.close();
    }
    fn stop(&self, stop: Stop) {
        self.inner.stop(stop);
    }
    fn stopped(&self) -> Option<Stop> {
        self.inner.stopped()
    }
    fn split(
        &self,
        color: Option<u32>,
        key: u32,
        timeout: Duration,
    ) -> Result<Option<Box<dyn Transport>>, Stop> {
        self.inner.split(color, key, timeout)
    }
}

/// A CPU whose memberships have a failing transport.
struct Doomed {
    cpu: Arc<CpuBackend>,
    death: Death,
    /// The rank and the read it dies in.
    victim: (u32, usize),
}

impl Collectives for Doomed {
    fn new_id(&self) -> Result<CommId> {
        self.cpu.new_id()
    }
    fn communicator(&self, _: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        let (rank, reads) = self.victim;
        let inner: Box<dyn Transport> = Box::new(super::local::Local::join(&self.cpu.groups, config)?);
        let left = AtomicUsize::new(if rank == config.rank { reads } else { 0 });
        Ok(CpuCommunicator::new(Box::new(Failing { inner, death: self.death, left }), config.timeout))
    }
}

impl Memory for Doomed {
    fn traits(&self, device: Ordinal) -> MemoryTraits {
        self.cpu.traits(device)
    }
    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        self.cpu.reserve(device, bytes)
    }
    fn release(&self, device: Ordinal, segment: Segment) -> Result<()> {
        self.cpu.release(device, segment)
    }
    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        self.cpu.copy(launch, copy)
    }
    fn memory_info(&self, device: Ordinal) -> Result<MemoryInfo> {
        self.cpu.memory_info(device)
    }
}

impl Queue for Doomed {
    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        self.cpu.stream_create(device, options)
    }
}

// None: what a test reaches is compiled once more with it, and through the kernels that would be the whole crate.
macro_rules! kernels {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Kernels for Doomed {
            $( fn $method(&self, _: &Launch<'_>, _: &call::$kind) -> Result<()> {
                Err(OpError::internal(stringify!($method), "only groups are under test".to_string()))
            } )*
        }
    };
}
portolan_core::for_each_op!(kernels);

impl FusedOps for Doomed {}

impl Backend for Doomed {
    fn name(&self) -> &'static str {
        "cpu"
    }
    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.cpu.devices()
    }
    fn support(&self, device: Ordinal, query: &OpQuery<'_>) -> Support {
        self.cpu.support(device, query)
    }
}

fn cpu(executor: Executor) -> Arc<CpuBackend> {
    CpuBackend::new(CpuOptions { executor, threads: Some(2), ..CpuOptions::default() }).unwrap()
}

fn device(backend: Arc<dyn Backend>) -> Device {
    Registry::new().with(backend).open("cpu:0").unwrap()
}

/// Runs `body` on a thread for each rank, with a device, a stream and a membership of its own.
fn on_ranks<T: Send>(
    backend: &Arc<dyn Backend>,
    world_size: u32,
    timeout: Duration,
    body: impl Fn(Stream, Communicator) -> T + Sync,
) -> Vec<T> {
    let id = backend.new_id().unwrap();
    std::thread::scope(|scope| {
        let body = &body;
        let join = |rank| {
            let stream = device(backend.clone()).stream(StreamOptions::default()).unwrap();
            let config = CommConfig { id, rank, world_size, timeout, determinism: Determinism::RunToRun };
            let comm = Communicator::join(&stream, &config).unwrap();
            body(stream, comm)
        };
        let threads: Vec<_> = (0..world_size).map(|rank| scope.spawn(move || join(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Rank, operator and number that a failure names.
fn blamed(error: &OpError) -> (u32, String, u64) {
    let source = match error {
        OpError::Poisoned { source, .. } => source.as_ref(),
        other => other,
    };
    match source {
        OpError::Collective { op, seq, rank, .. } => (*rank, op.to_string(), *seq),
        other => panic!("not a collective's failure: {other}"),
    }
}

fn up(stream: &Stream, data: &[f32]) -> Tensor {
    stream.upload(data, &Shape::new(&[data.len()]).unwrap()).unwrap()
}

#[test]
fn a_rank_that_dies_inside_a_reduction_is_named_on_every_survivor_in_time() {
    // The sum takes twelve reads of each rank, the copies behind the inner fence two more.
    const LEN: usize = 20_000;
    let timeout = Duration::from_millis(400);
    let stuck = Death::Stuck(3 * timeout);
    for executor in [Executor::Inline, Executor::Queued, Executor::Chaotic { seed: 5 }] {
        for (death, reads) in [(Death::Panic, 1), (Death::Panic, 5), (Death::Panic, 13), (stuck, 5)] {
            let backend: Arc<dyn Backend> =
                Arc::new(Doomed { cpu: cpu(executor), death, victim: (1, reads) });
            on_ranks(&backend, 3, timeout, |stream, comm| {
                let x = up(&stream, &[1.0; LEN]);
                stream.run(Barrier::new(&comm).unwrap()).unwrap();
                stream.synchronize().unwrap();
                let start = Instant::now();
                let sum = AllReduce::sum(&comm, &x, &mut x.clone()).unwrap();
                let error = stream.run(sum).and_then(|()| stream.synchronize()).unwrap_err();
                let took = start.elapsed();
                if comm.rank() == 1 && matches!(death, Death::Panic) {
                    assert!(error.to_string().contains("died in a reduction"), "{error}");
                    return;
                }
                assert_eq!(blamed(&error), (1, "all_reduce".into(), 1), "{executor:?} {death:?} {reads}");
                let bound = timeout + Duration::from_secs(1);
                assert!(comm.rank() == 1 || took < bound, "{executor:?} {death:?} {reads}: {took:?}");
            });
        }
    }
}
