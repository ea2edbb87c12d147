//! Runs every operator on a second device as well, from the same bytes, and finds the first one whose results differ.
//!
//! Operators are compared one by one: each starts from what the first device has, so that an error does not travel and
//! is found where it is made. Data goes from one device to the other through the host while the operator is launched,
//! which waits for both: a tool for explaining, not for speed. Ranks of a group are compared where each has a thread and a
//! device handle of its own, as inside one process they should.

mod group;
mod size;
mod stored;

use super::{Decorate, Decorated};
use crate::backend::{Backend, Ordinal};
use crate::buffer::{Buffer, BufferInner, HostBuffer, Point};
use crate::comm::{CommConfig, RawCommunicator};
use crate::launch::Launch;
use crate::op::{Bind, Op, OpKind};
use crate::stream::Stream;
use crate::sync::{Mutex, lock};
use crate::tensor::Tensor;
use crate::weight::Weight;
use core::fmt;
use portolan_ops::quant::PrepackSpec;
use portolan_ops::{
    Access, Contract, DType, HostTensor, Mismatch, OpError, OpName, Result, Shape, TensorSpec, Tolerance,
};
use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use stored::Stored;

/// Copies kept for operands that have not changed, before those whose memory is gone are looked for.
const COPIES: usize = 64;

/// How the calls of one operator compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// The operator's name.
    pub op: OpName,
    /// Calls whose results were compared.
    pub compared: u64,
    /// Of those, calls whose results were the same bytes.
    pub identical: u64,
    /// Of those, calls beyond the tolerance.
    pub diverged: u64,
    /// The largest error of any of them, as a multiple of what is allowed.
    pub worst: f64,
    /// Calls that could not be compared.
    pub skipped: u64,
    /// Why the first of those could not.
    pub why: Option<String>,
}

/// An operand of a call that diverged, as bytes: enough to run it again anywhere.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its name. A packed weight is recorded as the tensors it was packed from.
    pub name: String,
    /// Element type, extents and layout.
    pub spec: TensorSpec,
    /// How the operator touches it.
    pub access: Access,
    /// Its contents before the call, where they matter.
    pub before: Option<Vec<u8>>,
    /// What the first device wrote.
    pub got: Option<Vec<u8>>,
    /// What the second device wrote.
    pub want: Option<Vec<u8>>,
}

/// A call whose results differ by more than both devices may err.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// The operator's name.
    pub op: OpName,
    /// Which operator.
    pub kind: OpKind,
    /// The scopes it stands in: `layers.3.attention`.
    pub path: String,
    /// Its attributes and operands, in the form a Rust program writes them.
    pub contract: String,
    /// The two devices.
    pub devices: [String; 2],
    /// Submission number on the first device's stream.
    pub seq: u64,
    /// The operand that differs.
    pub operand: String,
    /// Coordinates of the element that differs most.
    pub element: Vec<usize>,
    /// Both values there (got: first device, want: second), and how far they are apart.
    pub mismatch: Mismatch,
    /// What two devices may differ by, for numbers of this size.
    pub tolerance: Tolerance,
    /// Every operand.
    pub operands: Vec<Recorded>,
}

impl Divergence {
    /// An operand's contents before the call.
    ///
    /// # Errors
    /// `Attribute` when the operator reads no such operand.
    pub fn input(&self, name: &str) -> Result<HostTensor> {
        let found = self.operands.iter().find(|operand| operand.name == name);
        match found.and_then(|operand| Some((operand.spec, operand.before.clone()?))) {
            Some((spec, bytes)) => HostTensor::from_bytes(&spec, bytes),
            None => Err(OpError::attribute(self.op.clone(), name.to_owned(), "is no operand that is read")),
        }
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { got, want, excess, failures, .. } = self.mismatch;
        let [first, second] = &self.devices;
        let place = if self.path.is_empty() { "no scope" } else { &self.path };
        writeln!(f, "{} at {place}, submission {}", self.op, self.seq)?;
        writeln!(
            f,
            "  element   {} {:?}: {failures} elements differ, this one most",
            self.operand, self.element
        )?;
        writeln!(f, "  values    {got:e} on {first}")?;
        writeln!(f, "            {want:e} on {second}")?;
        let (error, allowed) = ((got - want).abs(), self.tolerance.abs + self.tolerance.rel * want.abs());
        writeln!(f, "  error     {error:e}, allowed {allowed:e}: {excess:.1} times")?;
        for operand in &self.operands {
            let access = match operand.access {
                Access::Read => "reads",
                Access::Write => "writes",
                Access::ReadWrite => "changes",
            };
            writeln!(f, "  {access:<9} {} {}", operand.name, operand.spec)?;
        }
        write!(f, "  contract  {}", self.contract)
    }
}

/// Collects comparisons from the backends it is put around.
///
/// Wrap before the device is opened and before weights are packed, run, and ask for [`ShadowLog::first`]. Operators over
/// ranks are compared with their contract's reference in f64, from what all ranks gave, when every rank's backend is
/// wrapped by clones of one log; where one is missing they count as skipped.
#[derive(Clone)]
pub struct ShadowLog(Arc<Inner>);

struct Inner {
    second: Stream,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: Vec<Agreement>,
    first: Option<Arc<Divergence>>,
    /// Operands on the second device that the first one has not changed since.
    copies: HashMap<usize, Copied<Buffer>>,
    /// What the first device's packed weights were packed from, by buffer and where they begin in it.
    packed: HashMap<usize, Copied<HashMap<usize, Repacked>>>,
    /// The largest number of weights, by their buffers on the first device.
    largest: HashMap<usize, Copied<f64>>,
    /// Operators over ranks that not all ranks have come to.
    waiting: group::Waitings,
}

/// Something made from a buffer of the first device; good for as long as nobody writes to that.
struct Copied<T> {
    written: Option<Point>,
    source: Weak<BufferInner>,
    value: T,
}

#[derive(Clone)]
struct Repacked {
    weight: Weight,
    /// The operator it was packed for; `None` while it is as it was loaded.
    consumer: Option<OpKind>,
}

impl<T: Clone> Copied<T> {
    fn of(source: &Buffer, value: T) -> Self {
        Self { written: source.usage().write, source: source.watch(), value }
    }

    fn get(&self, source: &Buffer) -> Option<T> {
        self.is_good(source).then(|| self.value.clone())
    }

    fn is_good(&self, source: &Buffer) -> bool {
        self.source.strong_count() > 0 && self.written == source.usage().write
    }
}

impl ShadowLog {
    /// An empty log that compares with the device of `second`.
    pub fn new(second: &Stream) -> Self {
        Self(Arc::new(Inner { second: second.clone(), state: Mutex::new(State::default()) }))
    }

    /// `inner` with everything it runs compared here.
    pub fn around(&self, inner: Arc<dyn Backend>) -> Arc<dyn Backend> {
        Decorated::new(Shadow { inner, log: self.0.clone() })
    }

    /// How each operator compared, by name.
    pub fn agreements(&self) -> Vec<Agreement> {
        let mut rows = lock(&self.0.state).rows.clone();
        rows.sort_by(|a, b| a.op.cmp(&b.op));
        rows
    }

    /// The first call whose results differ.
    pub fn first(&self) -> Option<Arc<Divergence>> {
        lock(&self.0.state).first.clone()
    }
}

impl State {
    fn row(&mut self, op: OpName) -> &mut Agreement {
        let at = self.rows.iter().position(|row| row.op == op).unwrap_or_else(|| {
            let (compared, identical, diverged, skipped) = (0, 0, 0, 0);
            self.rows.push(Agreement { op, compared, identical, diverged, worst: 0.0, skipped, why: None });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// Books a call that was compared.
    fn book(&mut self, op: OpName, outcome: &Outcome, divergence: Option<Arc<Divergence>>) {
        let row = self.row(op);
        row.compared += 1;
        row.identical += u64::from(outcome.identical);
        row.diverged += u64::from(outcome.first.is_some());
        row.worst = row.worst.max(outcome.worst);
        self.first = self.first.take().or(divergence);
    }

    fn skip(&mut self, op: OpName, why: impl FnOnce() -> String) {
        let row = self.row(op);
        row.skipped += 1;
        row.why.get_or_insert_with(why);
    }

    fn keep(&mut self, source: &Buffer, copy: &Buffer) {
        if self.copies.len() >= COPIES && self.copies.len().is_power_of_two() {
            self.copies.retain(|_, copied| copied.source.strong_count() > 0);
            self.packed.retain(|_, copied| copied.source.strong_count() > 0);
            self.largest.retain(|_, copied| copied.source.strong_count() > 0);
        }
        self.copies.insert(source.key(), Copied::of(source, copy.clone()));
    }
}

struct Shadow {
    inner: Arc<dyn Backend>,
    log: Arc<Inner>,
}

/// One operand on both devices.
struct Pair {
    name: String,
    spec: TensorSpec,
    access: Access,
    first: Buffer,
    second: Buffer,
    /// Contents before the call, of operands that it may change.
    before: Option<Vec<u8>>,
}

impl Pair {
    fn twin(&self) -> Result<Tensor> {
        Tensor::new(self.second.clone(), self.spec)
    }
}

/// The call on the second device, done.
struct Twin {
    pairs: Vec<Pair>,
    /// What stands for packed operands, by their names.
    stored: Vec<(String, Stored)>,
}

impl Shadow {
    /// The bytes of a buffer as they are now, behind everything enqueued; `None` when the stream has failed.
    fn read(&self, launch: &Launch<'_>, buffer: &Buffer) -> Result<Option<Vec<u8>>> {
        launch.read_back(self.inner.as_ref(), buffer.address(), buffer.bytes())
    }

    fn upload(&self, bytes: &[u8]) -> Result<Buffer> {
        let spec = TensorSpec::new(DType::U8, Shape::new(&[bytes.len()])?);
        let host = HostBuffer::from_bytes(bytes)?;
        Ok(self.log.second.upload_bytes(&spec, host, &"shadow".into())?.buffer().clone())
    }

    /// A buffer's copy on the second device, kept for as long as it stays the same.
    fn copy_of(&self, launch: &Launch<'_>, source: &Buffer) -> Result<Option<Buffer>> {
        let known = lock(&self.log.state).copies.get(&source.key()).and_then(|copied| copied.get(source));
        if known.is_some() {
            return Ok(known);
        }
        let Some(bytes) = self.read(launch, source)? else { return Ok(None) };
        let copy = self.upload(&bytes)?;
        lock(&self.log.state).keep(source, &copy);
        Ok(Some(copy))
    }

    /// Every operand on both devices, sharing memory there as here; `None` when the stream has failed.
    fn pairs(&self, launch: &Launch<'_>, op: &dyn Op) -> Result<Option<Vec<Pair>>> {
        let mut all: Vec<(String, TensorSpec, Access, Buffer)> = Vec::new();
        op.operands(&mut |arg| all.push((arg.name.into(), *arg.spec, arg.access, arg.buffer.clone())));
        let mut pairs: Vec<Pair> = Vec::new();
        for (name, spec, access, first) in &all {
            let mine = || all.iter().filter(|(_, _, _, buffer)| buffer.same(first));
            let (reads, writes) = (mine().any(|o| o.2.reads()), mine().any(|o| o.2.writes()));
            let (second, before) = match pairs.iter().find(|pair| pair.first.same(first)) {
                Some(pair) => (pair.second.clone(), pair.before.clone()),
                None if !writes => match self.copy_of(launch, first)? {
                    Some(copy) => (copy, None),
                    None => return Ok(None),
                },
                None if reads => match self.read(launch, first)? {
                    Some(bytes) => (self.upload(&bytes)?, Some(bytes)),
                    None => return Ok(None),
                },
                None => {
                    let spec = TensorSpec::new(DType::U8, Shape::new(&[first.bytes()])?);
                    (self.log.second.empty(&spec)?.buffer().clone(), None)
                }
            };
            let (name, first) = (name.clone(), first.clone());
            pairs.push(Pair { name, spec: *spec, access: *access, first, second, before });
        }
        Ok(Some(pairs))
    }

    /// Runs the call on the second device; `None` when it cannot be compared, which is booked.
    fn twin<C: Bind>(&self, launch: &Launch<'_>, spec: &C, op: &dyn Op) -> Result<Option<Twin>> {
        let skip = |why: &dyn Fn() -> String| lock(&self.log.state).skip(op.op_name(), why);
        let any: &dyn Any = spec;
        if let Some(prepack) = any.downcast_ref::<PrepackSpec>() {
            self.note_packing(launch, op, prepack)?;
        } else {
            self.forget_packed(op);
        }
        if matches!(op.kind(), OpKind::Prepack | OpKind::Unpack) {
            skip(&|| "a packed form is its device's own; its users are compared".into());
            return Ok(None);
        }
        let Some(pairs) = self.pairs(launch, op)? else {
            skip(&|| "the stream has failed".into());
            return Ok(None);
        };
        let mut twin = Twin { pairs, stored: Vec::new() };
        if twin.pairs.iter().any(stored::is_packed) {
            return Ok(match self.run_stored(any, &mut twin)? {
                Some(why) => {
                    skip(&|| why.clone());
                    None
                }
                None => Some(twin),
            });
        }
        let tensors = twin.pairs.iter().map(Pair::twin).collect::<Result<Vec<_>>>()?;
        let tensors: Vec<&Tensor> = tensors.iter().collect();
        match self.log.second.run(spec.bind(&tensors)?) {
            Ok(()) => Ok(Some(twin)),
            Err(error @ OpError::Unsupported { .. }) => {
                skip(&|| error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Compares what both devices wrote.
    fn compare<C: Contract>(&self, launch: &Launch<'_>, spec: &C, op: &dyn Op, twin: &Twin) -> Result<()> {
        let mut outcome = Outcome::new();
        let mut written = Vec::new();
        let results = twin.pairs.iter().enumerate().filter(|(_, pair)| pair.access.writes());
        for ((place, pair), tolerance) in results.zip(spec.tolerance()) {
            let span = pair.spec.span_bytes();
            let got = launch.read_back(self.inner.as_ref(), pair.first.address(), span)?;
            let Some(got) = got else {
                lock(&self.log.state).skip(op.op_name(), || "the stream has failed".into());
                return Ok(());
            };
            let want = self.second_bytes(&pair.second, span)?;
            if got != want {
                let got = HostTensor::from_bytes(&pair.spec, got.clone())?.to_f64();
                let want = HostTensor::from_bytes(&pair.spec, want.clone())?.to_f64();
                let known = self.error_of_size(spec, twin, (&pair.name, tolerance), &want)?;
                let tolerance = match known {
                    Some(error) => Tolerance { abs: 2.0 * error, rel: 2.0 * tolerance.rel },
                    None => doubled(tolerance, self.largest_input(twin)?.max(largest(&want)).max(1.0)),
                };
                outcome.take(place, tolerance, &got, &want);
            }
            written.push((place, got, want));
        }
        let fresh = outcome.first.is_some() && lock(&self.log.state).first.is_none();
        let divergence = match (&outcome.first, fresh) {
            (Some(found), true) => Some(Arc::new(self.describe(launch, spec, op, twin, written, found)?)),
            _ => None,
        };
        lock(&self.log.state).book(op.op_name(), &outcome, divergence);
        Ok(())
    }

    fn second_bytes(&self, buffer: &Buffer, bytes: usize) -> Result<Vec<u8>> {
        let mut all = self.log.second.download_bytes(buffer)?.wait()?;
        all.truncate(bytes);
        Ok(all)
    }

    fn before(&self, pair: &Pair) -> Result<Vec<u8>> {
        let span = pair.spec.span_bytes();
        match &pair.before {
            Some(bytes) => Ok(bytes[..span.min(bytes.len())].to_vec()),
            None => self.second_bytes(&pair.second, span),
        }
    }

    /// The largest number of the first operand that is read, which by custom is the data and not a weight or a cache.
    fn largest_input(&self, twin: &Twin) -> Result<f64> {
        match twin.pairs.iter().find(|pair| pair.access.reads()) {
            Some(pair) => Ok(largest(&HostTensor::from_bytes(&pair.spec, self.before(pair)?)?.to_f64())),
            None => Ok(0.0),
        }
    }

    fn describe<C: Contract>(
        &self,
        launch: &Launch<'_>,
        spec: &C,
        op: &dyn Op,
        twin: &Twin,
        written: Vec<(usize, Vec<u8>, Vec<u8>)>,
        &(place, tolerance, mismatch): &(usize, Tolerance, Mismatch),
    ) -> Result<Divergence> {
        let mut written = written.into_iter().peekable();
        let mut operands = Vec::new();
        for (at, pair) in twin.pairs.iter().enumerate() {
            if let Some((name, stored)) = twin.stored.iter().find(|(name, _)| *name == pair.name) {
                operands.extend(self.record_stored(name, stored)?);
                continue;
            }
            let (name, spec, access) = (pair.name.clone(), pair.spec, pair.access);
            let before = if access.reads() { Some(self.before(pair)?) } else { None };
            let (got, want) = match written.next_if(|(place, _, _)| *place == at) {
                Some((_, got, want)) => (Some(got), Some(want)),
                None => (None, None),
            };
            operands.push(Recorded { name, spec, access, before, got, want });
        }
        let differing = &twin.pairs[place];
        let name = |device: &crate::Device| format!("{} ({})", device.id(), device.info().name);
        Ok(Divergence {
            op: op.op_name(),
            kind: op.kind(),
            path: launch.path().to_string(),
            contract: format!("{spec:?}"),
            devices: [name(&launch.device()), name(&self.log.second.device())],
            seq: launch.seq(),
            operand: differing.name.clone(),
            element: coordinates(&differing.spec, mismatch.index),
            mismatch,
            tolerance,
            operands,
        })
    }

    fn record_stored(&self, name: &str, stored: &Stored) -> Result<Vec<Recorded>> {
        let parts = self.stored_parts(name, stored)?.into_iter();
        parts
            .map(|(name, tensor)| {
                let spec = *tensor.spec();
                let before = Some(self.second_bytes(tensor.buffer(), spec.span_bytes())?);
                Ok(Recorded { name, spec, access: Access::Read, before, got: None, want: None })
            })
            .collect()
    }
}

struct Outcome {
    identical: bool,
    worst: f64,
    first: Option<(usize, Tolerance, Mismatch)>,
}

impl Outcome {
    fn new() -> Self {
        Self { identical: true, worst: 0.0, first: None }
    }

    fn take(&mut self, place: usize, tolerance: Tolerance, got: &[f64], want: &[f64]) {
        let excess = got.iter().zip(want).map(|(&got, &want)| tolerance.excess(got, want));
        let worst = excess.fold(0.0, f64::max);
        // Bytes between the elements, and the two zeros, are no difference.
        self.identical &= worst == 0.0;
        self.worst = self.worst.max(worst);
        if let Err(mismatch) = tolerance.check(got, want) {
            self.first.get_or_insert((place, tolerance, mismatch));
        }
    }
}

/// What two devices may differ by: both may be off, in opposite directions, and sums err in proportion to what is
/// summed. An operator's tolerance is what one may be off for numbers of size 1, the cases' range.
fn doubled(tolerance: Tolerance, size: f64) -> Tolerance {
    Tolerance { abs: 2.0 * size * tolerance.abs, rel: 2.0 * tolerance.rel }
}

fn largest(values: &[f64]) -> f64 {
    values.iter().map(|value| value.abs()).filter(|value| value.is_finite()).fold(0.0, f64::max)
}

fn coordinates(spec: &TensorSpec, mut index: usize) -> Vec<usize> {
    let mut at: Vec<usize> = Vec::new();
    for &dim in spec.dims().iter().rev() {
        at.push(index % dim.max(1));
        index /= dim.max(1);
    }
    at.reverse();
    at
}

impl Decorate for Shadow {
    fn inner(&self) -> &dyn Backend {
        self.inner.as_ref()
    }

    fn launch<C: Bind>(
        &self,
        launch: &Launch<'_>,
        spec: &C,
        op: &dyn Op,
        forward: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let twin = self.twin(launch, spec, op)?;
        forward()?;
        match twin {
            Some(twin) => self.compare(launch, spec, op, &twin),
            None => Ok(()),
        }
    }

    fn communicator(&self, device: Ordinal, config: &CommConfig) -> Result<Arc<dyn RawCommunicator>> {
        let inner = self.inner.communicator(device, config)?;
        Ok(group::Member::joined(inner, &self.inner, &self.log, config.id))
    }
}
