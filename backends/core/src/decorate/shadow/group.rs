//! Operators over ranks compared: what every rank gave and got meets in the log, and the rank that comes last holds it
//! against the contract's own reference, in f64.
//!
//! The second device has no group, and needs none: nobody waits for a peer here beyond the operator itself.

use super::{Divergence, Inner, Outcome, Recorded, coordinates, largest};
use crate::backend::Backend;
use crate::call::{CollectiveCall, CollectiveDispatch};
use crate::comm::{CommId, RawCommunicator};
use crate::decorate::{DecorateMember, DecoratedMember};
use crate::launch::Launch;
use crate::op::{Op, OpKind};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::lock;
use portolan_ops::{Access, DType, HostTensor, OpName, Result, Tolerance};
use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

/// Operators whose ranks have not all come. Ranks are at most one operator apart, as each waits for its own; more are
/// left by groups that ended, or of which this log does not see every rank.
const WAITING: usize = 64;
/// Integers up to here are exact in f64.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Which group: how it was joined, and which parts of it were split off since.
#[derive(Clone, PartialEq)]
pub(super) struct Group {
    joined: CommId,
    /// The number of the split and the color, split by split.
    parts: Vec<(u64, u32)>,
}

/// An operator of a group for which ranks have still to come.
struct Waiting {
    group: Group,
    seq: u64,
    op: OpName,
    /// `Vec<Option<Part<C>>>`, one a rank.
    parts: Box<dyn Any + Send>,
}

/// Operators that ranks have come to, oldest first.
#[derive(Default)]
pub(super) struct Waitings(VecDeque<Waiting>);

/// What one rank gave and got.
struct Part<C> {
    spec: C,
    path: String,
    device: String,
    submission: u64,
    /// Operands that are read, as they were before, and those that are written, as they are now.
    given: Vec<HostTensor>,
    got: Vec<HostTensor>,
}

impl Waitings {
    /// Adds a rank's part; the parts of all ranks when it was the last one. The second answer is an operator that is no
    /// longer waited for.
    fn add<C: CollectiveDispatch>(
        &mut self,
        (group, seq): (&Group, u64),
        part: Part<C>,
    ) -> (Option<Vec<Part<C>>>, Option<OpName>) {
        let (ranks, op) = (part.spec.ranks(), part.spec.name());
        let known = self.0.iter().position(|waiting| waiting.seq == seq && waiting.group == *group);
        let mut waiting = match known.and_then(|at| self.0.remove(at)) {
            Some(waiting) => waiting,
            None => {
                let none: Vec<Option<Part<C>>> = (0..ranks.count()).map(|_| None).collect();
                Waiting { group: group.clone(), seq, op: op.into(), parts: Box::new(none) }
            }
        };
        // Ranks that called different operators have been told so by their group.
        let Some(parts) = waiting.parts.downcast_mut::<Vec<Option<Part<C>>>>() else {
            return (None, Some(waiting.op));
        };
        if let Some(place) = parts.get_mut(ranks.index()) {
            *place = Some(part);
        }
        if parts.iter().all(Option::is_some) {
            return (Some(parts.drain(..).flatten().collect()), None);
        }
        self.0.push_back(waiting);
        let lost = (self.0.len() > WAITING).then(|| self.0.pop_front()).flatten();
        (None, lost.map(|waiting| waiting.op))
    }
}

/// A rank whose operators are compared.
pub(super) struct Member {
    inner: Arc<dyn RawCommunicator>,
    backend: Arc<dyn Backend>,
    log: Arc<Inner>,
    group: Group,
    splits: AtomicU64,
}

impl Member {
    /// `inner`, which has joined group `id` on `backend`, compared in `log`.
    pub(super) fn joined(
        inner: Arc<dyn RawCommunicator>,
        backend: &Arc<dyn Backend>,
        log: &Arc<Inner>,
        id: CommId,
    ) -> Arc<dyn RawCommunicator> {
        let group = Group { joined: id, parts: Vec::new() };
        let (backend, log) = (backend.clone(), log.clone());
        DecoratedMember::new(Self { inner, backend, log, group, splits: AtomicU64::new(0) })
    }

    /// The operands that `which` names, as they are behind everything enqueued; `None` when the stream has failed.
    fn read<C: CollectiveDispatch>(
        &self,
        launch: &Launch<'_>,
        op: &CollectiveCall<C>,
        which: impl Fn(Access) -> bool,
    ) -> Result<Option<Vec<HostTensor>>> {
        let mut operands = Vec::new();
        op.spec().operands(&mut |operand| operands.push((*operand.spec, operand.access)));
        let mut read = Vec::new();
        for ((spec, access), address) in operands.into_iter().zip(op.addresses()) {
            if !which(access) {
                continue;
            }
            match launch.read_back(self.backend.as_ref(), address, spec.span_bytes())? {
                Some(bytes) => read.push(HostTensor::from_bytes(&spec, bytes)?),
                None => return Ok(None),
            }
        }
        Ok(Some(read))
    }

    /// Compares what all ranks got with what the contract says of what all gave.
    fn compare<C: CollectiveDispatch>(&self, parts: &[Part<C>]) -> Result<()> {
        let numbers: Vec<Vec<Vec<f64>>> =
            parts.iter().map(|part| part.given.iter().map(HostTensor::to_f64).collect()).collect();
        let given: Vec<Vec<&[f64]>> =
            numbers.iter().map(|of_rank| of_rank.iter().map(Vec::as_slice).collect()).collect();
        let scale = given.iter().flatten().map(|values| largest(values)).fold(0.0, f64::max);
        let specs: Vec<C> = parts.iter().map(|part| part.spec.clone()).collect();
        let Some(op) = specs.first().map(|spec| OpName::from(spec.name())) else { return Ok(()) };
        let wide = |part: &Part<C>| part.given.iter().any(|x| x.spec().dtype() == DType::I64);
        if parts.iter().any(wide) && scale * parts.len() as f64 > EXACT {
            let why = || "its integers are beyond 2^53, where the reference in f64 rounds".into();
            lock(&self.log.state).skip(op, why);
            return Ok(());
        }
        let wanted = C::reference(&specs, &given);
        for (rank, (part, wanted)) in parts.iter().zip(&wanted).enumerate() {
            let mut outcome = Outcome::new();
            for (place, ((got, want), tolerance)) in
                part.got.iter().zip(wanted).zip(part.spec.tolerance()).enumerate()
            {
                outcome.take(place, of_size(tolerance, scale, got.spec().dtype()), &got.to_f64(), want);
            }
            let fresh = outcome.first.is_some() && lock(&self.log.state).first.is_none();
            let divergence = match (&outcome.first, fresh) {
                (Some(first), true) => Some(Arc::new(describe(parts, rank, wanted, first)?)),
                _ => None,
            };
            lock(&self.log.state).book(op.clone(), &outcome, divergence);
        }
        Ok(())
    }
}

/// What a result may differ by from the exact one for numbers up to `scale`: sums err in proportion to what is summed.
/// Results below 1 in the narrow types keep the allowance for 1, as the smallest numbers of those are large.
fn of_size(tolerance: Tolerance, scale: f64, dtype: DType) -> Tolerance {
    let least = if matches!(dtype, DType::F32 | DType::F64) { f64::from(f32::MIN_POSITIVE) } else { 1.0 };
    Tolerance { abs: scale.max(least) * tolerance.abs, rel: tolerance.rel }
}

/// The call of rank `rank`, with what all others gave.
fn describe<C: CollectiveDispatch>(
    parts: &[Part<C>],
    rank: usize,
    wanted: &[Vec<f64>],
    &(place, tolerance, mismatch): &(usize, Tolerance, portolan_ops::Mismatch),
) -> Result<Divergence> {
    let part = &parts[rank];
    let mut operands = Vec::new();
    let (mut given, mut got) = (part.given.iter(), part.got.iter().zip(wanted));
    let mut named: Vec<(String, Access)> = Vec::new();
    part.spec.operands(&mut |operand| named.push((operand.name.into(), operand.access)));
    let written: Vec<String> = named.iter().filter(|o| o.1.writes()).map(|o| o.0.clone()).collect();
    for (name, access) in named {
        let before = if access.reads() { given.next() } else { None };
        let after = if access.writes() { got.next() } else { None };
        let Some(spec) = before.or(after.map(|(got, _)| got)).map(|tensor| *tensor.spec()) else { continue };
        let want = match after {
            Some((_, want)) => Some(HostTensor::from_f64(&spec, want, 0)?.bytes().to_vec()),
            None => None,
        };
        let bytes = |tensor: &HostTensor| tensor.bytes().to_vec();
        let (before, got) = (before.map(bytes), after.map(|(got, _)| bytes(got)));
        operands.push(Recorded { name, spec, access, before, got, want });
    }
    for (other, part) in parts.iter().enumerate().filter(|(other, _)| *other != rank) {
        for given in &part.given {
            let (spec, before) = (*given.spec(), Some(given.bytes().to_vec()));
            let name = format!("given by rank {other}");
            operands.push(Recorded { name, spec, access: Access::Read, before, got: None, want: None });
        }
    }
    let differing = part.got.get(place);
    Ok(Divergence {
        op: part.spec.name().into(),
        kind: OpKind::Collective(C::KIND),
        path: part.path.clone(),
        contract: format!("{:?}", part.spec),
        devices: [format!("{}, rank {rank}", part.device), "the contract's reference in f64".into()],
        seq: part.submission,
        operand: written.get(place).cloned().unwrap_or_default(),
        element: differing.map_or(Vec::new(), |got| coordinates(got.spec(), mismatch.index)),
        mismatch,
        tolerance,
        operands,
    })
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
        let given = self.read(launch, op, Access::reads)?;
        forward()?;
        let got = self.read(launch, op, Access::writes)?;
        let (Some(given), Some(got)) = (given, got) else {
            lock(&self.log.state).skip(op.op_name(), || "the stream has failed".into());
            return Ok(());
        };
        let device = launch.device();
        let part = Part {
            spec: op.spec().clone(),
            path: launch.path().to_string(),
            device: format!("{} ({})", device.id(), device.info().name),
            submission: launch.seq(),
            given,
            got,
        };
        let parts = {
            let state = &mut *lock(&self.log.state);
            let (parts, lost) = state.waiting.add((&self.group, seq), part);
            if let Some(op) = lost {
                state.skip(op, || "not all ranks of its group were seen".into());
            }
            parts
        };
        parts.map_or(Ok(()), |parts| self.compare(&parts))
    }

    fn split(&self, color: Option<u32>, key: u32) -> Result<Option<Arc<dyn RawCommunicator>>> {
        // Ranks split in the same order, so all of a part number it alike.
        let number = self.splits.fetch_add(1, Ordering::Relaxed);
        let Some(inner) = self.inner.split(color, key)? else { return Ok(None) };
        let mut group = self.group.clone();
        group.parts.extend(color.map(|color| (number, color)));
        let (backend, log) = (self.backend.clone(), self.log.clone());
        Ok(Some(DecoratedMember::new(Self { inner, backend, log, group, splits: AtomicU64::new(0) })))
    }
}
