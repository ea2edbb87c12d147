//! One operator on its way to a backend. Holds the device's submission lock; only `run` makes one.

use crate::backend::{Backend, RawCopy, RawStream};
use crate::buffer::{Buffer, HostBuffer, Point};
use crate::device::{Device, Submission};
use crate::op::{Op, OpKind};
use crate::order::Upstream;
use crate::pool::Pool;
use crate::report::StreamReport;
use crate::scope::Path;
use crate::stream::{Fallback, StreamInner, StreamOptions};
use crate::sync::MutexGuard;
use crate::tensor::Tensor;
use portolan_ops::{Access, Cost, Determinism, OpError, OpName, Result, TensorSpec, Unsupported};
use smallvec::SmallVec;
use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::sync::Arc;

/// The submission lock and the pool that scratch comes from, shared by an operator and its parts.
pub(crate) struct Held<'a> {
    submission: RefCell<MutexGuard<'a, Submission>>,
    /// A graph's private pool during its replay.
    private: Option<&'a RefCell<Pool>>,
    /// The account of what is recorded into a driver's graph, where nothing runs.
    recorded: Option<&'a RefCell<StreamReport>>,
    /// Where the operator being replayed was recorded.
    path: Cell<Option<&'a Path>>,
}

impl<'a> Held<'a> {
    pub(crate) fn lock(stream: &'a StreamInner, private: Option<&'a RefCell<Pool>>) -> Self {
        let submission = RefCell::new(stream.device().submission());
        Self { submission, private, recorded: None, path: Cell::new(None) }
    }

    /// What is submitted is recorded: it is ordered behind nothing, touches nothing, and is booked here only.
    pub(crate) fn recording(self, account: &'a RefCell<StreamReport>) -> Self {
        Self { recorded: Some(account), ..self }
    }

    /// What is submitted next was recorded at `path`.
    pub(crate) fn enter(&self, path: &'a Path) {
        self.path.set(Some(path));
    }
}

/// [`Held`] without its lifetime: a lock guard is invariant in its own, which would leak into [`Launch`].
pub(crate) trait Hold {
    fn submission(&self) -> RefMut<'_, Submission>;
    fn private(&self) -> Option<&RefCell<Pool>>;
    fn recorded(&self) -> Option<&RefCell<StreamReport>>;
    fn path(&self) -> Option<&Path>;
}

impl Hold for Held<'_> {
    fn submission(&self) -> RefMut<'_, Submission> {
        RefMut::map(self.submission.borrow_mut(), |guard| &mut **guard)
    }
    fn private(&self) -> Option<&RefCell<Pool>> {
        self.private
    }
    fn recorded(&self) -> Option<&RefCell<StreamReport>> {
        self.recorded
    }
    fn path(&self) -> Option<&Path> {
        self.path.get()
    }
}

/// The right to enqueue on one stream, for the duration of one call.
///
/// Not `Send`: it stands for the device's submission lock, which the current thread holds.
pub struct Launch<'a> {
    stream: &'a Arc<StreamInner>,
    held: &'a dyn Hold,
    op: Option<&'a dyn Op>,
    /// What this is where no operator is launched.
    name: &'static str,
    seq: u64,
    depth: u32,
    /// The program's call that this is, or is a part of.
    call: OpKind,
    composed: OnceCell<Unsupported>,
}

impl<'a> Launch<'a> {
    pub(crate) fn raw_copy(stream: &'a Arc<StreamInner>, held: &'a dyn Hold, seq: u64) -> Self {
        // No operator runs on it, so the kind is never booked.
        Self::nameless(stream, held, seq, "copy")
    }

    /// A run of a driver's graph.
    pub(crate) fn replay(stream: &'a Arc<StreamInner>, held: &'a dyn Hold, seq: u64) -> Self {
        Self::nameless(stream, held, seq, "replay")
    }

    fn nameless(stream: &'a Arc<StreamInner>, held: &'a dyn Hold, seq: u64, name: &'static str) -> Self {
        Self { stream, held, op: None, name, seq, depth: 0, call: OpKind::Copy, composed: OnceCell::new() }
    }

    /// Runs a part of a composition on the same stream, through the outermost backend.
    pub fn run(&self, op: impl Op) -> Result<()> {
        submit(self.stream, self.held, &op, self.depth + 1, self.call)
    }

    /// Books that `op` is composed and why; a composition's first line.
    ///
    /// # Errors
    /// `Unsupported` when the stream denies compositions.
    pub fn composed(&self, op: &dyn Op, why: Unsupported) -> Result<()> {
        if self.options().fallback == Fallback::Deny {
            return Err(self.unsupported(
                op.op_name(),
                why,
                "allow compositions on this stream, or use a device with a native kernel",
            ));
        }
        let _ = self.composed.set(why.clone());
        book(self.stream, self.held, |report| report.book_composition(op.kind(), &why));
        Ok(())
    }

    /// Books a kernel that the backend built at run time, compiled or specialised, to do this launch.
    pub fn kernel_built(&self) {
        if let Some(slot) = self.held.submission().slots.get_mut(self.stream.id()) {
            slot.report.kernel_builds += 1;
        }
    }

    /// A temporary of this launch; may be dropped as soon as the call returns.
    pub fn scratch(&self, spec: &TensorSpec) -> Result<Tensor> {
        let label = self.stream.scratch_label().clone();
        let buffer = self.allocate(spec.span_bytes(), &label)?;
        Tensor::new(buffer, *spec)
    }

    /// Scratch that holds a small table made on the host; enqueued like everything else.
    pub(crate) fn constant(&self, spec: &TensorSpec, bytes: &[u8]) -> Result<Tensor> {
        let tensor = self.scratch(spec)?;
        if bytes.len() != spec.span_bytes() {
            return Err(OpError::internal(self.op_name(), "a table has another length than its tensor"));
        }
        if bytes.is_empty() {
            return Ok(tensor);
        }
        let host = HostBuffer::from_bytes(bytes)?;
        let mut seq = self.seq;
        if self.held.recorded().is_none() {
            let submission = &mut *self.held.submission();
            if let Some(slot) = submission.slots.get_mut(self.stream.id()) {
                slot.seq += 1;
                seq = slot.seq;
            }
            order_operands(self.stream.id(), submission, seq, &mut |visit| {
                visit(tensor.buffer(), Access::Write);
            })?;
        }
        let copy = RawCopy::Upload { host, address: tensor.buffer().address() };
        self.stream.device().backend.copy(&Launch::raw_copy(self.stream, self.held, seq), copy)?;
        Ok(tensor)
    }

    fn allocate(&self, bytes: usize, label: &Arc<str>) -> Result<Buffer> {
        let submission = &mut *self.held.submission();
        let context = self.stream.device().pool_context(self.options().timeout);
        let mut private = self.held.private().map(RefCell::borrow_mut);
        let (block, returns) =
            submission.allocate(private.as_deref_mut(), self.stream.id(), bytes, label, &context)?;
        Ok(Buffer::new(block, self.stream.clone(), returns, label.clone()))
    }

    /// The level the stream asks for.
    pub fn determinism(&self) -> Determinism {
        self.options().determinism
    }
    /// The stream's options.
    pub fn options(&self) -> &StreamOptions {
        self.stream.options()
    }
    /// The backend's queue.
    pub fn raw(&self) -> &dyn RawStream {
        self.stream.raw()
    }
    /// The submission number, for faults.
    pub fn seq(&self) -> u64 {
        self.seq
    }
    /// What this launch relies on on other streams.
    pub fn upstream(&self) -> Upstream {
        self.held.submission().slots.upstream(self.stream.id())
    }
    /// The scopes this stands in; of a replayed operator, those it was recorded in.
    pub fn path(&self) -> Path {
        self.held.path().map_or_else(Path::here, Path::clone)
    }
    /// 0 for what the program ran; each composition or graph that this is a part of adds 1.
    pub fn depth(&self) -> u32 {
        self.depth
    }
    /// Why this was composed from other operators, once it was.
    pub fn composition(&self) -> Option<&Unsupported> {
        self.composed.get()
    }
    /// The number of the stream, as in error messages.
    pub fn stream_id(&self) -> u64 {
        self.stream.id()
    }

    /// Waits for everything enqueued on the stream, and copies device memory to the host; `None` when the stream has
    /// failed. Only for decorators that look at data: whoever needs the submission lock meanwhile waits too.
    pub(crate) fn read_back(
        &self,
        backend: &dyn Backend,
        address: usize,
        bytes: usize,
    ) -> Result<Option<Vec<u8>>> {
        let host = HostBuffer::zeroed(bytes)?;
        if bytes > 0 {
            let copy = RawCopy::Download { address, host: host.clone() };
            backend.copy(&Launch::raw_copy(self.stream, self.held, self.seq), copy)?;
            self.raw().record()?.synchronize(self.options().timeout)?;
        }
        if self.raw().fault().is_some() {
            return Ok(None);
        }
        // SAFETY: the copy was the only writer, and its event has been waited for.
        Ok(Some(unsafe { host.bytes_unchecked() }.to_vec()))
    }

    /// The device.
    pub fn device(&self) -> Device {
        Device::from_inner(self.stream.device().clone())
    }
    /// The name of the operator being launched.
    pub fn op_name(&self) -> OpName {
        self.op.map_or(self.name.into(), |op| op.op_name())
    }

    /// The error for an operator this device cannot do.
    pub fn unsupported(&self, op: OpName, reason: Unsupported, hint: &'static str) -> OpError {
        OpError::Unsupported { op, device: self.stream.device().info.id.clone(), reason, hint: hint.into() }
    }
}

/// Receives each buffer an operator touches.
pub(crate) type Touch<'a> = &'a mut dyn FnMut(&Buffer, Access);

/// Makes `stream` wait for whatever else touched these operands, and books their new use.
///
/// Nothing is booked when the stream turns out to be poisoned: an operator that is refused touches nothing.
pub(crate) fn order_operands(
    stream: u64,
    submission: &mut Submission,
    seq: u64,
    visit: &mut dyn FnMut(Touch<'_>),
) -> Result<()> {
    let mut waits: SmallVec<[Point; 4]> = SmallVec::new();
    visit(&mut |buffer, access| {
        let usage = buffer.usage();
        if access.writes() {
            waits.extend(usage.uses.iter().filter(|p| p.stream != stream).copied());
        }
        waits.extend(usage.write.filter(|w| w.stream != stream));
    });
    let slots = &mut submission.slots;
    waits.iter().try_for_each(|&point| slots.order_after(stream, point, seq))?;
    slots.health(stream, u64::MAX)?;
    visit(&mut |buffer, access| buffer.usage().touch(Point { stream, seq }, access.writes()));
    Ok(())
}

/// The one choke point: order, health, account, launch. `call` is the program's call that `op` is, or is a part of.
pub(crate) fn submit(
    stream: &Arc<StreamInner>,
    held: &dyn Hold,
    op: &dyn Op,
    depth: u32,
    call: OpKind,
) -> Result<()> {
    let submitted = order_and_launch(stream, held, op, depth, call);
    if let Err(error) = &submitted {
        op.refused(error);
    }
    submitted
}

fn order_and_launch(
    stream: &Arc<StreamInner>,
    held: &dyn Hold,
    op: &dyn Op,
    depth: u32,
    call: OpKind,
) -> Result<()> {
    let (mut seq, mut has_output) = (0, false);
    let mut same_device = true;
    op.operands(&mut |arg| {
        has_output |= arg.access.writes() && arg.spec.numel() != 0;
        same_device &= Arc::ptr_eq(arg.buffer.device(), stream.device());
    });
    if !same_device {
        return Err(foreign_stream(stream, op));
    }
    op.ready()?;
    let device = stream.device();
    crate::form::expect_own(
        device.backend.as_ref(),
        (device.ordinal, &device.info.id),
        || op.op_name(),
        &op.query(stream.options().determinism),
    )?;
    if held.recorded().is_none() {
        let submission = &mut *held.submission();
        // Before anything is enqueued: a poisoned stream waits for nobody.
        submission.slots.health(stream.id(), u64::MAX)?;
        if let Some(slot) = submission.slots.get_mut(stream.id()) {
            slot.seq += 1;
            seq = slot.seq;
        }
        // Inside a replay the graph's operands were ordered as one; its private tensors need it still.
        order_operands(stream.id(), submission, seq, &mut |visit| {
            op.operands(&mut |arg| visit(arg.buffer, arg.access));
        })?;
    }
    let launch = Launch { stream, held, op: Some(op), name: "", seq, depth, call, composed: OnceCell::new() };
    if has_output {
        op.launch(stream.device().backend.as_ref(), &launch)?;
    }
    let cost = op.cost();
    book(stream, held, |report| {
        if depth == 0 {
            report.launches += 1;
            report.book_calls(call, 1, cost);
        }
        if launch.composed.get().is_none() {
            report.book_kernel(call, cost);
        }
        report.prepacks += u64::from(op.kind() == OpKind::Prepack);
    });
    Ok(())
}

/// Books in the stream's account, or in that of what is recorded.
fn book(stream: &StreamInner, held: &dyn Hold, entry: impl FnOnce(&mut StreamReport)) {
    match held.recorded() {
        Some(account) => entry(&mut account.borrow_mut()),
        None => {
            if let Some(slot) = held.submission().slots.get_mut(stream.id()) {
                entry(&mut slot.report);
            }
        }
    }
}

fn foreign_stream(stream: &Arc<StreamInner>, op: &dyn Op) -> OpError {
    let mut rhs = stream.device().info.id.clone();
    op.operands(&mut |arg| {
        if !Arc::ptr_eq(arg.buffer.device(), stream.device()) {
            rhs = arg.buffer.device().info.id.clone();
        }
    });
    OpError::Device { op: op.op_name(), lhs: stream.device().info.id.clone(), rhs }
}

/// Books a replayed graph: one launch, and the calls it was made of. Their kernels are booked as they are submitted.
pub(crate) fn book_replay(submission: &mut Submission, stream: u64, calls: &[(OpKind, u64, Cost)]) {
    if let Some(slot) = submission.slots.get_mut(stream) {
        slot.report.launches += 1;
        calls.iter().for_each(|&(kind, count, cost)| slot.report.book_calls(kind, count, cost));
    }
}
