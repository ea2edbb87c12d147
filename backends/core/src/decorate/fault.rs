//! Makes things go wrong where a [`FaultPlan`] says, as a driver would report them.

use super::plan::{FaultKind, FaultPlan};
use super::{Decorate, DecorateMember, Decorated, DecoratedMember};
use crate::backend::{Backend, Fault, Ordinal, RawCopy, RawEvent, RawStream, Segment};
use crate::call::{self, CollectiveCall, CollectiveDispatch};
use crate::comm::{CommConfig, RawCommunicator};
use crate::launch::Launch;
use crate::op::{Bind, Op};
use crate::scope::Path;
use crate::stream::StreamOptions;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, lock};
use crate::tensor::Tensor;
use portolan_ops::comm::Ranks;
use portolan_ops::kernel::BinaryKind;
use portolan_ops::{DeviceId, OpError, OpName, Result, Unsupported};
use std::any::Any;
use std::cell::Cell;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// A backend on which a plan comes true; see [`FaultPlan::around`]. Clones are one plan under way.
#[derive(Clone)]
pub struct Faulty(Arc<State>);

struct State {
    inner: Arc<dyn Backend>,
    plan: FaultPlan,
    /// Occurrences so far; those of ranks are counted by their memberships.
    counts: Counts,
    struck: Mutex<Vec<String>>,
    streams: Mutex<Vec<Weak<Health>>>,
    lost: Mutex<Option<Arc<OpError>>>,
}

/// One count a fault.
struct Counts(Vec<AtomicU64>);

impl Counts {
    fn of(plan: &FaultPlan) -> Self {
        Self(plan.faults.iter().map(|_| AtomicU64::new(0)).collect())
    }
}

/// What a stream has met.
struct Health {
    /// Address of its queue, as launches see it.
    queue: AtomicU64,
    fault: Mutex<Option<Fault>>,
    /// Its latest submission.
    last: AtomicU64,
}

impl FaultPlan {
    /// `inner` with this plan come true on it. Ranks of one group may share what is made here, or have a plan each.
    pub fn around(self, inner: Arc<dyn Backend>) -> (Arc<dyn Backend>, Faulty) {
        let state = State {
            inner,
            counts: Counts::of(&self),
            plan: self,
            struck: Mutex::new(Vec::new()),
            streams: Mutex::new(Vec::new()),
            lost: Mutex::new(None),
        };
        let faulty = Faulty(Arc::new(state));
        (Decorated::new(faulty.clone()), faulty)
    }
}

impl Faulty {
    /// A membership on which the faults of its rank come true.
    fn member(&self, inner: Arc<dyn RawCommunicator>) -> Arc<dyn RawCommunicator> {
        let counts = Counts::of(&self.0.plan);
        DecoratedMember::new(Member { faulty: self.clone(), inner, counts, dead: Mutex::new(None) })
    }

    /// The faults that have struck, in order, each with where it did.
    pub fn struck(&self) -> Vec<String> {
        lock(&self.0.struck).clone()
    }

    /// Counts an occurrence for each fault of these kinds; the first one that strikes now.
    fn strike(
        &self,
        counts_of: &Counts,
        mut counts: impl FnMut(FaultKind, Option<&str>, Option<&str>) -> bool,
    ) -> Option<(usize, FaultKind)> {
        let mut found = None;
        for (i, (fault, count)) in self.0.plan.faults.iter().zip(&counts_of.0).enumerate() {
            if !counts(fault.kind, fault.op.as_deref(), fault.path.as_deref()) {
                continue;
            }
            let now = count.fetch_add(1, Ordering::Relaxed) + 1;
            if now == self.0.plan.occurrence(i) {
                found = found.or(Some((i, fault.kind)));
            }
        }
        found
    }

    fn note(&self, fault: usize, place: &str) {
        if let Some(fault) = self.0.plan.faults.get(fault) {
            lock(&self.0.struck).push(format!("{fault} struck {place}"));
        }
    }

    fn health_of(&self, launch: &Launch<'_>) -> Option<Arc<Health>> {
        let queue = address(launch.raw());
        let streams = lock(&self.0.streams);
        let mut living = streams.iter().rev().filter_map(Weak::upgrade);
        living.find(|health| health.queue.load(Ordering::Relaxed) == queue)
    }

    /// The error of everything that is asked of a device that is gone.
    fn expect_present(&self) -> Result<()> {
        match lock(&self.0.lost).as_deref() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn lose(&self, launch: &Launch<'_>, op: &dyn Op) -> OpError {
        let error = driver(launch, "device lost", "INJECTED_DEVICE_LOST");
        *lock(&self.0.lost) = Some(Arc::new(error.clone()));
        let mut streams = lock(&self.0.streams);
        streams.retain(|health| health.strong_count() > 0);
        for health in streams.iter().filter_map(Weak::upgrade) {
            let seq = health.last.load(Ordering::Relaxed);
            health.fail(seq, op.op_name(), error.clone());
        }
        error
    }

    /// Launches an operator, or does to it what the plan says.
    fn befall(&self, launch: &Launch<'_>, op: &dyn Op, forward: &dyn Fn() -> Result<()>) -> Result<()> {
        self.expect_present()?;
        let health = self.health_of(launch);
        if let Some(health) = &health {
            health.last.store(launch.seq(), Ordering::Relaxed);
        }
        let path = launch.path();
        let mut floats = false;
        op.operands(&mut |arg| floats |= arg.access.writes() && arg.spec.dtype().is_float());
        let strike = self.strike(&self.0.counts, |kind, only_op, only_path| {
            let launches = match kind {
                FaultKind::Refused | FaultKind::Failed | FaultKind::Lost => true,
                FaultKind::Wrong(_) => floats,
                _ => false,
            };
            launches && is_meant(op, &path, only_op, only_path)
        });
        let Some((fault, kind)) = strike else { return forward() };
        self.note(fault, &format!("{} at {path}, submission {}", op.op_name(), launch.seq()));
        match kind {
            FaultKind::Refused => Err(driver(launch, "launch refused", "INJECTED_LAUNCH_FAILURE")),
            FaultKind::Failed => {
                if let Some(health) = health {
                    let error = driver(launch, "kernel failed", "INJECTED_KERNEL_FAILURE");
                    health.fail(launch.seq(), op.op_name(), error);
                }
                Ok(())
            }
            FaultKind::Lost => Err(self.lose(launch, op)),
            FaultKind::Wrong(by) => {
                forward()?;
                self.spoil(launch, op, fault, by)
            }
            _ => forward(),
        }
    }

    /// Adds `by` to one element of the first float result, which one by the seed.
    fn spoil(&self, launch: &Launch<'_>, op: &dyn Op, fault: usize, by: f64) -> Result<()> {
        let mut result = None;
        op.operands(&mut |arg| {
            if result.is_none() && arg.access.writes() && arg.spec.dtype().is_float() && arg.spec.numel() > 0
            {
                result = Some(Tensor::new(arg.buffer.clone(), *arg.spec));
            }
        });
        let Some(result) = result else { return Ok(()) };
        let mut element = result?;
        for dim in 0..element.dims().len() {
            let extent = element.dims()[dim] as u64;
            let at = self.0.plan.choose((fault as u64 + 1) << 32 | dim as u64, extent);
            element = element.narrow(dim, at as usize, 1)?;
        }
        // Not through the launch: the decorators around this one should see a wrong result and no addition.
        let add = call::Binary::scalar(BinaryKind::Add, &element, by, &mut element.clone())?;
        self.0.inner.binary(launch, &add)
    }
}

/// Whether a fault of these limits counts the operator.
fn is_meant(op: &dyn Op, path: &Path, only_op: Option<&str>, only_path: Option<&str>) -> bool {
    let named = only_op.is_none_or(|name| name == op.kind().name() || name == op.op_name());
    named && only_path.is_none_or(|outer| path.is_within(outer))
}

fn address(raw: &dyn RawStream) -> u64 {
    core::ptr::from_ref(raw).addr() as u64
}

fn driver(launch: &Launch<'_>, what: &str, name: &'static str) -> OpError {
    injected(launch.device().id(), "launch", what, name)
}

fn injected(device: DeviceId, call: &'static str, what: &str, name: &'static str) -> OpError {
    let message = format!("{what}, as the fault plan says");
    OpError::Driver { device, call: call.into(), code: -1, name: name.into(), message }
}

impl Health {
    fn fail(&self, seq: u64, op: OpName, error: OpError) {
        lock(&self.fault).get_or_insert(Fault { seq, op, source: Arc::new(error) });
    }
}

impl Decorate for Faulty {
    fn inner(&self) -> &dyn Backend {
        self.0.inner.as_ref()
    }

    fn launch<C: Bind>(
        &self,
        launch: &Launch<'_>,
        _: &C,
        op: &dyn Op,
        forward: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        self.befall(launch, op, forward)
    }

    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        self.expect_present()?;
        if let Some(health) = self.health_of(launch) {
            health.last.store(launch.seq(), Ordering::Relaxed);
        }
        self.0.inner.copy(launch, copy)
    }

    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        self.expect_present()?;
        self.0.inner.reserve(device, bytes)
    }

    fn admit(&self, device: Ordinal, bytes: usize) -> Result<()> {
        self.expect_present()?;
        match self.strike(&self.0.counts, |kind, _, _| kind == FaultKind::OutOfMemory) {
            Some((fault, _)) => {
                self.note(fault, &format!("an allocation of {bytes} bytes"));
                let info = self.0.inner.memory_info(device)?;
                Err(OpError::OutOfMemory {
                    device: DeviceId::new(self.0.inner.name(), device),
                    requested: bytes,
                    free: info.free,
                    total: info.total,
                    holders: Vec::new(),
                })
            }
            None => self.0.inner.admit(device, bytes),
        }
    }

    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        self.expect_present()?;
        let inner = self.0.inner.stream_create(device, options)?;
        let health = Health { queue: AtomicU64::new(0), fault: Mutex::new(None), last: AtomicU64::new(0) };
        let stream = Arc::new(FaultyStream { inner, health: Arc::new(health) });
        stream.health.queue.store(address(stream.as_ref()), Ordering::Relaxed);
        lock(&self.0.streams).push(Arc::downgrade(&stream.health));
        Ok(stream)
    }

    fn communicator(&self, device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        self.expect_present()?;
        Ok(self.member(self.0.inner.communicator(device, config)?))
    }
}

/// What a rank dies of.
const DIED: &str = "died, as the fault plan says";
/// A rank that is killed has moved fewer pieces of data than this: those of a small operator are about as many.
const MOVES: u64 = 8;

fn died(op: &dyn Op, seq: u64, ranks: Ranks) -> OpError {
    let (rank, world_size) = (ranks.rank(), ranks.world_size());
    OpError::Collective { op: op.op_name(), seq, rank, world_size, what: DIED.into() }
}

/// A rank that may die or be late.
struct Member {
    faulty: Faulty,
    inner: Arc<dyn RawCommunicator>,
    counts: Counts,
    /// What it died of.
    dead: Mutex<Option<Arc<OpError>>>,
}

impl Member {
    /// The fault of this rank that strikes now.
    fn strike(&self, launch: &Launch<'_>, op: &dyn Op) -> Option<(usize, FaultKind)> {
        let (me, path) = (self.inner.ranks().rank(), launch.path());
        self.faulty.strike(&self.counts, |kind, only_op, only_path| {
            let mine = match kind {
                FaultKind::Dead { rank } | FaultKind::Killed { rank } | FaultKind::Slow { rank, .. } => {
                    rank == me
                }
                _ => false,
            };
            mine && is_meant(op, &path, only_op, only_path)
        })
    }

    fn expect_alive(&self) -> Result<()> {
        match lock(&self.dead).as_deref() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
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
        self.expect_alive()?;
        if let Some((fault, kind)) = self.strike(launch, op) {
            let ranks = self.inner.ranks();
            self.faulty.note(fault, &format!("{} #{seq} of rank {}", op.op_name(), ranks.rank()));
            match kind {
                // As a program that is late: nothing of this rank's device is submitted meanwhile.
                FaultKind::Slow { delay, .. } => std::thread::sleep(delay),
                // What is enqueued fails; of the rest the group hears nothing more.
                FaultKind::Killed { .. } => {
                    let moves = self.faulty.0.plan.choose((fault as u64 + 1) << 32, MOVES);
                    if !self.inner.die_within_next(moves, DIED) {
                        return Err(OpError::Unsupported {
                            op: op.op_name(),
                            device: launch.device().id(),
                            reason: Unsupported::NotImplemented,
                            hint: "its ranks cannot be made to die while data moves; plan dead(rank) instead"
                                .into(),
                        });
                    }
                    let launched = forward();
                    *lock(&self.dead) = Some(Arc::new(died(op, seq, ranks)));
                    return launched;
                }
                _ => {
                    let error = died(op, seq, ranks);
                    *lock(&self.dead) = Some(Arc::new(error.clone()));
                    return Err(error);
                }
            }
        }
        let forwarded = Cell::new(false);
        self.faulty.befall(launch, op, &|| {
            forwarded.set(true);
            forward()
        })?;
        if !forwarded.get() {
            // The queue does not know that the kernel failed, so nobody else would tell the others.
            self.inner.abort(&format!(
                "has a stream that failed in {} #{seq}, as the fault plan says",
                op.op_name()
            ));
        }
        Ok(())
    }

    fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn RawCommunicator>>> {
        self.expect_alive()?;
        Ok(self.inner.split(color, key)?.map(|part| self.faulty.member(part)))
    }

    /// The dead tell nobody: the others have to find out.
    fn abort(&self, why: &str) {
        if self.expect_alive().is_ok() {
            self.inner.abort(why);
        }
    }

    fn health(&self) -> Result<()> {
        self.expect_alive()?;
        self.inner.health()
    }
}

/// A stream that may have failed without its queue knowing. What was enqueued before runs; core enqueues nothing after.
struct FaultyStream {
    inner: Arc<dyn RawStream>,
    health: Arc<Health>,
}

impl RawStream for FaultyStream {
    fn record(&self) -> Result<Arc<dyn RawEvent>> {
        self.inner.record()
    }
    fn stamp(&self) -> Result<Arc<dyn RawEvent>> {
        self.inner.stamp()
    }
    fn wait(&self, event: &Arc<dyn RawEvent>, seq: u64) -> Result<()> {
        self.inner.wait(event, seq)
    }
    fn is_idle(&self) -> bool {
        self.inner.is_idle()
    }
    fn synchronize(&self, timeout: Duration) -> Result<()> {
        self.inner.synchronize(timeout)
    }
    fn fault(&self) -> Option<Fault> {
        let planned = lock(&self.health.fault).clone();
        match (self.inner.fault(), planned) {
            (Some(own), Some(planned)) => Some(if own.seq < planned.seq { own } else { planned }),
            (own, planned) => own.or(planned),
        }
    }
    fn drain(&self) {
        self.inner.drain();
    }
    fn as_any(&self) -> &dyn Any {
        self.inner.as_any()
    }
}
