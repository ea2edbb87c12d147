//! What ran when: every operator and copy with its operands, cost and the time the device spent on it.
//!
//! Times are the queue's own: an event before and one after each operator, read once they are past, so that a span is
//! execution and never enqueueing. A backend that is not wrapped records nothing.

use super::{Decorate, DecorateMember, Decorated, DecoratedMember};
use crate::backend::{Backend, Ordinal, RawCopy, RawEvent, RawStream};
use crate::call::{CollectiveCall, CollectiveDispatch};
use crate::comm::{CommConfig, RawCommunicator};
use crate::launch::Launch;
use crate::op::{Bind, Op, OpKind};
use crate::scope::Path;
use crate::stream::StreamOptions;
use crate::sync::{Mutex, lock};
use portolan_ops::comm::Ranks;
use portolan_ops::{Access, Cost, DeviceId, OpName, Result, Unsupported};
use std::collections::{HashSet, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Spans kept unless [`TraceLog::with_limit`] says otherwise: some 200 MB.
const LIMIT: usize = 1 << 20;
/// Spans in flight on a stream before those that are done are read.
const IN_FLIGHT: usize = 256;

/// One operator or copy that ran.
#[derive(Clone, Debug)]
pub struct Span {
    /// The operator's name; `upload` or `download` for copies.
    pub op: OpName,
    /// Which operator; `None` for copies.
    pub kind: Option<OpKind>,
    /// Index into [`TraceLog::lanes`].
    pub lane: usize,
    /// When the queue came to it, since the log was made.
    pub start: Duration,
    /// How long the queue took; of a composed operator, all its parts.
    pub took: Duration,
    /// Submission number on its stream, as in error messages.
    pub seq: u64,
    /// 0 for what the program ran; parts of compositions and of graphs lie deeper.
    pub depth: u32,
    /// The scopes it stands in: `layers.3.attention`.
    pub path: Path,
    /// Operands: name, access, element type, extents and strides where they are not contiguous.
    pub operands: Arc<str>,
    /// Operations and bytes.
    pub cost: Cost,
    /// Why it was composed; `None` for one kernel.
    pub composed: Option<Unsupported>,
    /// Of an operator over ranks; its time holds the wait for the others.
    pub step: Option<GroupStep>,
}

/// Where an operator over ranks stands in the life of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStep {
    /// The rank whose part it is.
    pub ranks: Ranks,
    /// Its number among the group's operators, as in error messages: the same on all ranks.
    pub seq: u64,
}

/// A stream that spans lie on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lane {
    /// The device.
    pub device: DeviceId,
    /// The stream's number on it.
    pub stream: u64,
}

/// Collects spans from the backends it is put around.
///
/// Wrap before the device is opened, run, and read [`TraceLog::spans`].
#[derive(Clone)]
pub struct TraceLog(Arc<Inner>);

struct Inner {
    origin: Instant,
    limit: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lanes: Vec<LaneState>,
    done: Vec<Span>,
    lost: u64,
    /// Operand texts, which repeat from layer to layer and from step to step.
    texts: HashSet<Arc<str>>,
    scratch: String,
}

struct LaneState {
    /// Address of the backend's queue; an address that came back is a new lane.
    queue: usize,
    /// Known from its first span on.
    lane: Option<Lane>,
    /// An event of the empty queue, and when it was recorded.
    zero: Arc<dyn RawEvent>,
    zero_at: Duration,
    pending: VecDeque<Pending>,
}

struct Pending {
    begin: Arc<dyn RawEvent>,
    end: Arc<dyn RawEvent>,
    /// Without its times.
    span: Span,
}

impl Default for TraceLog {
    fn default() -> Self {
        Self::with_limit(LIMIT)
    }
}

impl TraceLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty log that keeps at most `spans` spans; later ones are counted only.
    pub fn with_limit(spans: usize) -> Self {
        let state = Mutex::new(State::default());
        Self(Arc::new(Inner { origin: Instant::now(), limit: spans, state }))
    }

    /// `inner` with everything it runs recorded here.
    pub fn around(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Decorated::new(Trace { inner, log: self.0.clone() })
    }

    /// The streams that ran something, in the order they began to.
    pub fn lanes(&self) -> Vec<Lane> {
        let state = lock(&self.0.state);
        let unknown = || Lane { device: DeviceId::new("unknown", 0), stream: 0 };
        state.lanes.iter().map(|lane| lane.lane.clone().unwrap_or_else(unknown)).collect()
    }

    /// Everything that has finished, in the order it began; an operator comes before its parts. Synchronise streams
    /// before, or what still runs is missing.
    pub fn spans(&self) -> Vec<Span> {
        let state = &mut *lock(&self.0.state);
        (0..state.lanes.len()).for_each(|lane| state.settle(lane, self.0.limit));
        let mut spans = state.done.clone();
        spans.sort_by_key(|span| (span.start, span.lane, span.depth, span.seq));
        spans
    }

    /// Spans beyond the limit.
    pub fn lost(&self) -> u64 {
        lock(&self.0.state).lost
    }
}

impl State {
    /// The lane of a launch's queue; a queue made before the wrapping cannot be here.
    fn lane_of(&mut self, launch: &Launch<'_>) -> Option<usize> {
        let queue = address(launch.raw());
        let at = self.lanes.iter().rposition(|lane| lane.queue == queue)?;
        let lane = &mut self.lanes[at].lane;
        lane.get_or_insert_with(|| Lane { device: launch.device().id(), stream: launch.stream_id() });
        Some(at)
    }

    /// Reads the times of what is done, oldest first.
    fn settle(&mut self, at: usize, limit: usize) {
        let lane = &mut self.lanes[at];
        while lane.pending.front().is_some_and(|first| first.end.is_complete()) {
            let Some(Pending { begin, end, mut span }) = lane.pending.pop_front() else { return };
            let start = begin.elapsed_since(lane.zero.as_ref());
            let (Some(start), Some(took)) = (start, end.elapsed_since(begin.as_ref())) else { continue };
            if self.done.len() >= limit {
                self.lost += 1;
                continue;
            }
            (span.start, span.took) = (lane.zero_at + start, took);
            self.done.push(span);
        }
    }

    /// The contract's operands: a communicator's turn is none.
    fn intern(&mut self, launch: &Launch<'_>, op: &dyn Op) -> Arc<str> {
        let mut text = std::mem::take(&mut self.scratch);
        text.clear();
        op.query(launch.determinism()).spec.operands(&mut |name, spec, access| {
            let comma = if text.is_empty() { "" } else { ", " };
            let access = match access {
                Access::Read => "",
                Access::Write => "→ ",
                Access::ReadWrite => "↔ ",
            };
            let _ = write!(text, "{comma}{access}{name} {spec}");
        });
        let known = self.texts.get(text.as_str()).cloned();
        let shared = known.unwrap_or_else(|| {
            let fresh: Arc<str> = text.as_str().into();
            self.texts.insert(fresh.clone());
            fresh
        });
        self.scratch = text;
        shared
    }
}

fn address(raw: &dyn RawStream) -> usize {
    core::ptr::from_ref(raw).addr()
}

struct Trace {
    inner: Arc<dyn Backend>,
    log: Arc<Inner>,
}

impl Inner {
    /// Runs `work` between two events of the launch's queue.
    fn record(
        &self,
        launch: &Launch<'_>,
        work: impl FnOnce() -> Result<()>,
        describe: impl FnOnce(&mut State) -> Span,
    ) -> Result<()> {
        let begin = launch.raw().stamp()?;
        // Nothing that failed to launch took time; its parts that did are spans of their own.
        work()?;
        let end = launch.raw().stamp()?;
        let state = &mut *lock(&self.state);
        let Some(lane) = state.lane_of(launch) else { return Ok(()) };
        let mut span = describe(state);
        (span.lane, span.seq, span.depth, span.path) = (lane, launch.seq(), launch.depth(), launch.path());
        let pending = &mut state.lanes[lane].pending;
        pending.push_back(Pending { begin, end, span });
        if pending.len() >= IN_FLIGHT {
            state.settle(lane, self.limit);
        }
        Ok(())
    }

    /// A membership whose operators are recorded.
    fn member(self: &Arc<Self>, inner: Arc<dyn RawCommunicator>) -> Arc<dyn RawCommunicator> {
        DecoratedMember::new(Member { inner, log: self.clone() })
    }
}

/// A span that knows neither where nor when.
fn span(op: OpName, kind: Option<OpKind>, operands: Arc<str>, cost: Cost) -> Span {
    let (start, took, path) = (Duration::ZERO, Duration::ZERO, Path::default());
    Span {
        op,
        kind,
        lane: 0,
        start,
        took,
        seq: 0,
        depth: 0,
        path,
        operands,
        cost,
        composed: None,
        step: None,
    }
}

impl Decorate for Trace {
    fn inner(&self) -> &dyn Backend {
        self.inner.as_ref()
    }

    fn launch<C: Bind>(
        &self,
        launch: &Launch<'_>,
        _: &C,
        op: &dyn Op,
        forward: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        self.log.record(launch, forward, |state| Span {
            composed: launch.composition().cloned(),
            ..span(op.op_name(), Some(op.kind()), state.intern(launch, op), op.cost())
        })
    }

    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        let (name, bytes, upload) = match &copy {
            RawCopy::Upload { host, .. } => ("upload", host.len() as u64, true),
            RawCopy::Download { host, .. } => ("download", host.len() as u64, false),
        };
        // Either way the device's memory is touched once.
        let (bytes_read, bytes_written) = if upload { (0, bytes) } else { (bytes, 0) };
        let cost = Cost { bytes_read, bytes_written, ..Cost::default() };
        let describe = |_: &mut State| span(name.into(), None, "".into(), cost);
        self.log.record(launch, || self.inner.copy(launch, copy), describe)
    }

    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        let raw = self.inner.stream_create(device, options)?;
        let (zero, zero_at) = (raw.record()?, self.log.origin.elapsed());
        let queue = address(raw.as_ref());
        let pending = VecDeque::new();
        lock(&self.log.state).lanes.push(LaneState { queue, lane: None, zero, zero_at, pending });
        Ok(raw)
    }

    fn communicator(&self, device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        Ok(self.log.member(self.inner.communicator(device, config)?))
    }
}

/// A rank whose operators are recorded.
struct Member {
    inner: Arc<dyn RawCommunicator>,
    log: Arc<Inner>,
}

impl DecorateMember for Member {
    fn inner(&self) -> &dyn RawCommunicator {
        self.inner.as_ref()
    }

    fn launch<C: CollectiveDispatch>(
        &self,
        launch: &Launch<'_>,
        seq: u64,
        op: &CollectiveCall<C>,
        forward: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let step = GroupStep { ranks: self.inner.ranks(), seq };
        self.log.record(launch, forward, |state| Span {
            step: Some(step),
            ..span(op.op_name(), Some(op.kind()), state.intern(launch, op), op.cost())
        })
    }

    fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn RawCommunicator>>> {
        Ok(self.inner.split(color, key)?.map(|part| self.log.member(part)))
    }
}
