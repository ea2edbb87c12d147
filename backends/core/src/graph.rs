//! Capture and replay. A graph is a list of operators, so every backend has graphs; where the driver has its own, the
//! operators are launched once, into it, and a replay is one launch.
//!
//! The graph holds every buffer it touches. Tensors made inside the captured closure, and scratch of its
//! operators, come from the graph's private pool, so eager work never gets an address the graph uses.

use crate::backend::{RawGraph, Support};
use crate::buffer::Buffer;
use crate::device::DeviceInner;
use crate::launch::{Held, Hold, Launch, book_replay, order_operands, submit};
use crate::op::{Op, OpKind};
use crate::pool::Pool;
use crate::report::StreamReport;
use crate::scope::Path;
use crate::stream::{Fallback, Stream, StreamInner};
use crate::sync::thread::{self, ThreadId};
use crate::sync::{Mutex, lock, thread_local};
use portolan_ops::{Access, Cost, OpError, Result};
use std::cell::{Cell, RefCell};
use std::sync::Arc;

thread_local! {
    /// The stream this thread is capturing, as [`StreamInner::key`]; 0 when none.
    #[allow(clippy::missing_const_for_thread_local, reason = "loom's macro takes no const block")]
    static CAPTURING: Cell<usize> = Cell::new(0);
}

/// `Capture` when this thread is inside a capture of another stream.
pub(crate) fn refuse_foreign_capture(stream: &StreamInner) -> Result<()> {
    let captured = CAPTURING.with(Cell::get);
    if captured == 0 || captured == stream.key() {
        return Ok(());
    }
    let what = format!(
        "stream {} was used while another one is captured; use only the captured stream",
        stream.id()
    );
    Err(OpError::Capture { what })
}

/// A capture under way.
pub(crate) struct Capture {
    thread: ThreadId,
    ops: Vec<(Path, Box<dyn Op>)>,
    private: PrivatePool,
}

impl Capture {
    /// Takes an operator instead of running it.
    pub(crate) fn record(&mut self, stream: &Arc<StreamInner>, op: Box<dyn Op>) -> Result<()> {
        self.check_thread(stream)?;
        let device = stream.device();
        let mut foreign = None;
        op.operands(&mut |arg| {
            if !Arc::ptr_eq(arg.buffer.device(), device) {
                foreign = Some(arg.buffer.device().info.id.clone());
            }
        });
        if let Some(rhs) = foreign {
            return Err(OpError::Device { op: op.op_name(), lhs: device.info.id.clone(), rhs });
        }
        let (backend, query) = (device.backend.as_ref(), op.query(stream.options().determinism));
        let at = (device.ordinal, &device.info.id);
        crate::form::expect_own(backend, at, || op.op_name(), &query)?;
        let refused = match backend.support(device.ordinal, &query) {
            Support::No(reason) => Some((reason, "leave it out of the capture".into())),
            Support::Composed(reason) if stream.options().fallback == Fallback::Deny => {
                Some((reason, "allow compositions on this stream".into()))
            }
            _ => None,
        };
        if let Some((reason, hint)) = refused {
            return Err(OpError::Unsupported {
                op: op.op_name(),
                device: device.info.id.clone(),
                reason,
                hint,
            });
        }
        self.ops.push((Path::here(), op));
        Ok(())
    }

    fn check_thread(&self, stream: &StreamInner) -> Result<()> {
        if thread::current().id() == self.thread {
            return Ok(());
        }
        let what = format!("another thread used stream {} while it is captured", stream.id());
        Err(OpError::Capture { what })
    }

    /// Memory of a tensor made inside the closure.
    pub(crate) fn allocate(
        &mut self,
        stream: &Arc<StreamInner>,
        bytes: usize,
        label: &Arc<str>,
    ) -> Result<Buffer> {
        self.check_thread(stream)?;
        let submission = &mut *stream.device().submission();
        let context = stream.device().pool_context(stream.options().timeout);
        let private = Some(self.private.pool.get_mut());
        let (block, returns) = submission.allocate(private, stream.id(), bytes, label, &context)?;
        Ok(Buffer::new(block, stream.clone(), returns, label.clone()))
    }
}

/// Recorded operators that run again as one.
///
/// Between replays the contents of buffers may change (inputs, block tables, device lengths); shapes,
/// scalars and host mirrors of lengths are frozen.
pub struct Graph {
    // Dropped before the pool: operators hold blocks of it. Each with the scopes it was recorded in.
    ops: Vec<(Path, Box<dyn Op>)>,
    /// Every buffer touched, with the union of its accesses.
    touched: Vec<(Buffer, Access)>,
    /// Calls by kind, their number and their cost.
    calls: Vec<(OpKind, u64, Cost)>,
    /// The driver's graph of it all, dropped before the memory it uses.
    recorded: Option<Recorded>,
    replay: Mutex<PrivatePool>,
}

/// A driver's graph, and what each of its runs is booked as beside the calls.
struct Recorded {
    graph: Arc<dyn RawGraph>,
    account: StreamReport,
}

struct PrivatePool {
    pool: RefCell<Pool>,
    device: Arc<DeviceInner>,
}

impl PrivatePool {
    fn new(device: &Arc<DeviceInner>) -> Self {
        Self { pool: RefCell::new(Pool::new(device.backend.traits(device.ordinal))), device: device.clone() }
    }
}

impl Drop for PrivatePool {
    fn drop(&mut self) {
        // Replays in flight, and tensors that escaped the closure, still use these segments: the device
        // takes the pool over and gives it back when nothing does.
        let empty = Pool::new(self.device.backend.traits(self.device.ordinal));
        let pool = self.pool.replace(empty);
        self.device.submission().adopt(pool, self.device.backend.as_ref(), self.device.ordinal);
    }
}

/// Ends the capture, also when the closure fails or panics.
struct Ending<'a>(Option<&'a StreamInner>);

impl Ending<'_> {
    fn take(&mut self) -> Option<Capture> {
        // Once only: afterwards somebody else may be capturing the stream.
        let stream = self.0.take()?;
        CAPTURING.with(|capturing| capturing.set(0));
        lock(&stream.capture).take()
    }
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl Stream {
    /// Records what the closure runs on this stream, without running it.
    ///
    /// Tensors that outlive the closure must exist before it: those made inside belong to the graph. Only
    /// this stream may be used, from this thread. Upload, download, synchronize and event calls fail.
    ///
    /// # Errors
    /// `Capture` for nested or misused captures, and where the driver's own graphs have no room for what was captured;
    /// `Unsupported` for operators the device cannot do; whatever the closure returns.
    pub fn capture(&self, closure: impl FnOnce(&Stream) -> Result<()>) -> Result<Graph> {
        let inner = self.inner();
        refuse_foreign_capture(inner)?;
        {
            let mut slot = lock(&inner.capture);
            if slot.is_some() {
                return Err(OpError::Capture {
                    what: format!("stream {} is being captured already", self.id()),
                });
            }
            let private = PrivatePool::new(inner.device());
            *slot = Some(Capture { thread: thread::current().id(), ops: Vec::new(), private });
        }
        let mut ending = Ending(Some(inner));
        CAPTURING.with(|capturing| capturing.set(inner.key()));
        let result = closure(self);
        let capture = ending.take();
        result?;
        let Some(Capture { ops, private, .. }) = capture else {
            return Err(OpError::internal("capture", "the capture vanished"));
        };
        let mut touched: Vec<(Buffer, Access)> = Vec::new();
        let mut calls: Vec<(OpKind, u64, Cost)> = Vec::new();
        for (_, op) in &ops {
            match calls.iter_mut().find(|(kind, _, _)| *kind == op.kind()) {
                Some((_, count, cost)) => (*count, *cost) = (*count + 1, *cost + op.cost()),
                None => calls.push((op.kind(), 1, op.cost())),
            }
            op.operands(&mut |arg| match touched.iter_mut().find(|(buffer, _)| buffer.same(arg.buffer)) {
                Some((_, access)) if *access != arg.access => *access = Access::ReadWrite,
                Some(_) => {}
                None => touched.push((arg.buffer.clone(), arg.access)),
            });
        }
        let recorded = record(inner, &ops, &private)?;
        Ok(Graph { ops, touched, calls, recorded, replay: Mutex::new(private) })
    }
}

/// Has the backend record the operators into a graph of the driver's.
fn record(
    stream: &Arc<StreamInner>,
    ops: &[(Path, Box<dyn Op>)],
    private: &PrivatePool,
) -> Result<Option<Recorded>> {
    // Ranks agree anew about each of their operators, which a driver's graph would not let them.
    if ops.is_empty() || ops.iter().any(|(_, op)| matches!(op.kind(), OpKind::Collective(_))) {
        return Ok(None);
    }
    let account = RefCell::new(StreamReport::default());
    let graph = {
        let held = Held::lock(stream, Some(&private.pool)).recording(&account);
        let backend = stream.device().backend.clone();
        backend.record_graph(stream.raw(), ops.len(), &mut || {
            private.pool.borrow_mut().keep_segments();
            ops.iter().try_for_each(|(path, op)| {
                held.enter(path);
                submit(stream, &held, op.as_ref(), 1, op.kind())
            })
        })?
    };
    Ok(graph.map(|graph| Recorded { graph, account: account.into_inner() }))
}

impl Graph {
    /// Whether the driver replays it, as one launch, rather than the library, as a list.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }
    /// Number of operators recorded.
    pub fn len(&self) -> usize {
        self.ops.len()
    }
    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }
    /// Cost of one replay, every operator counted as one kernel.
    pub fn cost(&self) -> Cost {
        self.calls.iter().fold(Cost::default(), |sum, &(_, _, cost)| sum + cost)
    }

    /// Runs everything again on a stream of the same device, as one operator: ordered behind whatever
    /// touched its operands, and before whatever will.
    ///
    /// # Errors
    /// As [`Stream::run`]; `Capture` inside a capture.
    pub fn replay(&self, stream: &Stream) -> Result<()> {
        let inner = stream.inner();
        inner.refuse_in_capture("replay")?;
        let private = lock(&self.replay);
        if !Arc::ptr_eq(&private.device, inner.device()) {
            let (lhs, rhs) = (private.device.info.id.clone(), inner.device().info.id.clone());
            return Err(OpError::Device { op: "replay".into(), lhs, rhs });
        }
        let submitted = self.submit_all(stream, &private.pool);
        if let Err(error) = &submitted {
            self.ops.iter().for_each(|(_, op)| op.refused(error));
        }
        submitted?;
        stream.after_submit()
    }

    fn submit_all(&self, stream: &Stream, private: &RefCell<Pool>) -> Result<()> {
        let inner = stream.inner();
        self.ops.iter().try_for_each(|(_, op)| op.ready())?;
        let held = Held::lock(inner, Some(private));
        {
            let submission = &mut *held.submission();
            submission.slots.health(stream.id(), u64::MAX)?;
            let seq = submission.slots.get(stream.id()).map_or(0, |slot| slot.seq + 1);
            order_operands(stream.id(), submission, seq, &mut |visit| {
                self.touched.iter().for_each(|(buffer, access)| visit(buffer, *access));
            })?;
            book_replay(submission, stream.id(), &self.calls);
            if let (Some(recorded), Some(slot)) = (&self.recorded, submission.slots.get_mut(stream.id())) {
                slot.seq = seq;
                slot.report.book_parts(&recorded.account);
            }
        }
        if let Some(recorded) = &self.recorded {
            let seq = held.submission().slots.get(stream.id()).map_or(0, |slot| slot.seq);
            return recorded.graph.replay(&Launch::replay(inner, &held, seq));
        }
        self.ops.iter().try_for_each(|(path, op)| {
            held.enter(path);
            submit(inner, &held, op.as_ref(), 1, op.kind())
        })
    }
}
