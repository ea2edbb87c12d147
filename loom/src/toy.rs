//! A backend that only keeps books: memory is numbers, copies move nothing, and a queue is worked off one entry at
//! a time by whoever waits for it, or by a thread that plays the device.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, lock, thread};
use portolan_core::{
    Backend, Collectives, Device, DeviceInfo, Fault, FusedOps, Kernels, Launch, Memory, MemoryInfo,
    MemoryTraits, OpQuery, Ordinal, Queue, RawCopy, RawEvent, RawStream, Registry, Segment, Stream,
    StreamOptions, Support, call,
};
use portolan_ops::{DType, DeviceId, OpError, Result, TensorSpec, Unsupported};
use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// What the models look at afterwards. A lock of `std`: nobody holds it across a switch of threads, and it adds
/// nothing to the search.
#[derive(Default)]
pub(crate) struct Books {
    next_address: usize,
    pub(crate) segments: usize,
    /// In order of creation; a stream's number is its place, from 0.
    queues: Vec<Weak<ToyQueue>>,
    /// `(stream, address)` of copies: enqueued and not executed, oldest first.
    pub(crate) in_flight: Vec<(usize, usize)>,
    /// In order of submission, and of execution.
    pub(crate) submitted: Vec<(usize, usize)>,
    pub(crate) executed: Vec<(usize, usize)>,
    /// The `(stream, address)` of copies that fail.
    pub(crate) bad: Option<(usize, usize)>,
}

pub(crate) struct Toy {
    books: Arc<std::sync::Mutex<Books>>,
}

enum Entry {
    Copy { address: usize, seq: u64 },
    Signal(Arc<ToyEvent>),
    Wait(Arc<ToyEvent>),
}

#[derive(Default)]
struct State {
    entries: VecDeque<Entry>,
    last_seq: u64,
    fault: Option<Fault>,
}

pub(crate) struct ToyQueue {
    number: usize,
    state: Mutex<State>,
    books: Arc<std::sync::Mutex<Books>>,
}

struct ToyEvent {
    reached: AtomicBool,
    owner: Arc<ToyQueue>,
}

struct ToyStream(Arc<ToyQueue>);

/// A device with nothing on it, and its books.
pub(crate) fn device() -> (Device, Arc<std::sync::Mutex<Books>>) {
    let books = Arc::new(std::sync::Mutex::new(Books { next_address: 1 << 20, ..Books::default() }));
    let registry = Registry::new().with(Arc::new(Toy { books: books.clone() }));
    (registry.open("toy:0").unwrap(), books)
}

pub(crate) fn stream(device: &Device) -> Stream {
    device.stream(StreamOptions::default()).unwrap()
}

pub(crate) fn bytes(count: usize) -> TensorSpec {
    TensorSpec::of(DType::U8, &[count]).unwrap()
}

/// The device's own thread: tries to execute `steps` entries of the stream that was made as `number`.
pub(crate) fn device_thread(
    books: &std::sync::Mutex<Books>,
    number: usize,
    steps: usize,
) -> thread::JoinHandle<()> {
    let queue = books.lock().unwrap().queues[number].upgrade().unwrap();
    thread::spawn(move || {
        for _ in 0..steps {
            queue.step();
        }
    })
}

impl ToyQueue {
    /// Executes the oldest entry, unless it waits for an event that is not reached; whether it did.
    pub(crate) fn step(&self) -> bool {
        let mut state = lock(&self.state);
        match state.entries.pop_front() {
            None => return false,
            Some(Entry::Wait(event)) if !event.is_complete() => {
                state.entries.push_front(Entry::Wait(event));
                return false;
            }
            Some(Entry::Wait(_)) => {}
            Some(Entry::Signal(event)) => event.reached.store(true, Ordering::Release),
            Some(Entry::Copy { address, seq }) => {
                let mut books = self.books.lock().unwrap();
                let entry = (self.number, address);
                let at = books.in_flight.iter().position(|copy| *copy == entry).unwrap();
                books.in_flight.remove(at);
                if state.fault.is_none() {
                    books.executed.push(entry);
                    if books.bad == Some(entry) {
                        let source = Arc::new(OpError::internal("copy", "the model said so"));
                        state.fault = Some(Fault { seq, op: "copy".into(), source });
                    }
                }
            }
        }
        true
    }

    /// Works everything off, and whatever that waits for.
    fn finish(&self) {
        loop {
            let blocked = match lock(&self.state).entries.front() {
                None => return,
                Some(Entry::Wait(event)) => Some(event.clone()),
                Some(_) => None,
            };
            if let Some(event) = blocked {
                event.owner.finish();
            }
            self.step();
        }
    }

    fn push(&self, entry: Entry) {
        lock(&self.state).entries.push_back(entry);
    }
}

impl RawEvent for ToyEvent {
    fn is_complete(&self) -> bool {
        self.reached.load(Ordering::Acquire)
    }
    fn synchronize(&self, _: Duration) -> Result<()> {
        self.owner.finish();
        assert!(self.is_complete());
        Ok(())
    }
    fn elapsed_since(&self, _: &dyn RawEvent) -> Option<Duration> {
        None
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl RawStream for ToyStream {
    fn record(&self) -> Result<Arc<dyn RawEvent>> {
        let event = Arc::new(ToyEvent { reached: AtomicBool::new(false), owner: self.0.clone() });
        self.0.push(Entry::Signal(event.clone()));
        Ok(event)
    }
    fn wait(&self, event: &Arc<dyn RawEvent>, _: u64) -> Result<()> {
        let any: Arc<dyn Any + Send + Sync> = event.clone();
        self.0.push(Entry::Wait(any.downcast().unwrap()));
        Ok(())
    }
    fn is_idle(&self) -> bool {
        lock(&self.0.state).entries.is_empty()
    }
    fn synchronize(&self, _: Duration) -> Result<()> {
        self.0.finish();
        Ok(())
    }
    fn fault(&self) -> Option<Fault> {
        lock(&self.0.state).fault.clone()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Memory for Toy {
    fn traits(&self, _: Ordinal) -> MemoryTraits {
        MemoryTraits { alignment: 256, tail_padding: 0 }
    }
    fn reserve(&self, _: Ordinal, bytes: usize) -> Result<Segment> {
        let mut books = self.books.lock().unwrap();
        let address = books.next_address;
        books.next_address += bytes;
        books.segments += 1;
        Ok(Segment { address, bytes, handle: Box::new(()) })
    }
    fn release(&self, _: Ordinal, _: Segment) -> Result<()> {
        self.books.lock().unwrap().segments -= 1;
        Ok(())
    }
    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        let (RawCopy::Upload { address, .. } | RawCopy::Download { address, .. }) = copy;
        let queue = &launch.raw().as_any().downcast_ref::<ToyStream>().unwrap().0;
        let mut state = lock(&queue.state);
        assert!(launch.seq() > state.last_seq, "submission {} after {}", launch.seq(), state.last_seq);
        state.last_seq = launch.seq();
        state.entries.push_back(Entry::Copy { address, seq: launch.seq() });
        let mut books = self.books.lock().unwrap();
        books.in_flight.push((queue.number, address));
        books.submitted.push((queue.number, address));
        Ok(())
    }
    fn memory_info(&self, _: Ordinal) -> Result<MemoryInfo> {
        Ok(MemoryInfo { free: 1 << 40, total: 1 << 40 })
    }
}

impl Queue for Toy {
    fn stream_create(&self, _: Ordinal, _: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        let mut books = self.books.lock().unwrap();
        let (number, state) = (books.queues.len(), Mutex::new(State::default()));
        let queue = Arc::new(ToyQueue { number, state, books: self.books.clone() });
        books.queues.push(Arc::downgrade(&queue));
        Ok(Arc::new(ToyStream(queue)))
    }
}

macro_rules! kernels {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Kernels for Toy {
            $(
                fn $method(&self, _: &Launch<'_>, _: &call::$kind) -> Result<()> {
                    unreachable!("the models only copy")
                }
            )*
        }
    };
}
portolan_core::for_each_op!(kernels);

impl FusedOps for Toy {}
impl Collectives for Toy {}

impl Backend for Toy {
    fn name(&self) -> &'static str {
        "toy"
    }
    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        let (id, name) = (DeviceId::new("toy", 0), "toy".into());
        Ok(vec![DeviceInfo { id, name, memory_bytes: 1 << 40, flushes_denormals: false, keeps_data: true }])
    }
    fn support(&self, _: Ordinal, _: &OpQuery<'_>) -> Support {
        Support::No(Unsupported::NotImplemented)
    }
}
