//! The suite bites: a correct backend passes, and each planted fault fails the tests that are about it, and no
//! others.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "bites/attention.rs"]
mod attention;
#[path = "../../../examples/custom_backend.rs"]
#[allow(dead_code, unreachable_pub)]
mod custom_backend;

use attention::Forgets;
use custom_backend::ToyBackend;
use portolan_conformance::{ReferenceBackend, Report, Suite, Verdict};
use portolan_core::{
    Backend, Call, Collectives, DeviceInfo, Dispatch, Fault, FusedOps, HostBuffer, Kernels, Launch, Memory,
    MemoryInfo, MemoryTraits, Op, OpKind, OpQuery, Ordinal, Queue, RawCopy, RawEvent, RawStream, Segment,
    StreamOptions, Support, Tensor, call,
};
use portolan_ops::{DType, OpError, Result};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

/// What is wrong with the backend.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Plant {
    Nothing,
    /// The last element of every conversion is another number.
    WrongElement,
    /// Conversions write one byte behind their result.
    OutOfBounds,
    /// `support` says that comparisons have a native kernel.
    SupportLie,
    /// A stream that is told to wait for another one does not.
    IgnoredEvent,
    /// Segments are not given back.
    Leak,
    /// What is beyond the device is an internal error instead of `Unsupported`.
    WrongErrorKind,
    /// Products over many rows add up the two halves of a sum apart.
    BatchDependentOrder,
    /// Uploads do not wait for the work before them.
    EarlyAccess,
    /// Attention leaves something out.
    Attention(Forgets),
}

/// A backend with a fault: the toy, or, for what the toy does not do, the reference device.
struct Faulty {
    inner: Arc<dyn Backend>,
    toy: Option<Arc<ToyBackend>>,
    plant: Plant,
}

impl Faulty {
    fn suite(plant: Plant) -> Suite {
        Suite::new(move || {
            let toy = ToyBackend::new();
            Ok(match plant {
                Plant::Attention(_) => Arc::new(Faulty { inner: ReferenceBackend::new(), toy: None, plant }),
                _ => Arc::new(Faulty { inner: toy.clone(), toy: Some(toy), plant }),
            })
        })
    }

    /// Overwrites bytes of the operand `out` behind the work enqueued so far.
    fn spoil<C: Dispatch>(&self, launch: &Launch<'_>, op: &Call<C>, at: usize, byte: u8) -> Result<()> {
        let address = op.address("out").unwrap() + at;
        self.inner.copy(launch, RawCopy::Upload { host: HostBuffer::from_bytes(&[byte])?, address })
    }

    /// Runs the operator, then does what is planted.
    fn tamper<C: Dispatch>(&self, launch: &Launch<'_>, op: &Call<C>) -> Result<()> {
        if self.plant == Plant::BatchDependentOrder && C::KIND == OpKind::Gemm && self.halves(launch, op)? {
            return Ok(());
        }
        if let Plant::Attention(forgets) = self.plant
            && forgets.run(self.inner.as_ref(), launch, op)?
        {
            return Ok(());
        }
        let ran = C::dispatch(self.inner.as_ref(), launch, op);
        if let (Plant::WrongErrorKind, Err(OpError::Unsupported { .. })) = (self.plant, &ran) {
            return Err(OpError::internal(op.op_name(), "what is this?"));
        }
        ran?;
        let out = op.tensor("out");
        let spec = out.as_ref().map(|out| *out.spec());
        match (self.plant, C::KIND, spec) {
            (Plant::WrongElement, OpKind::Cast, Some(spec)) if spec.is_contiguous() => {
                // The exponent and sign of a float, the upper bits of an integer.
                self.spoil(launch, op, spec.byte_range().1 - 1, 0x42)
            }
            (Plant::OutOfBounds, OpKind::Cast, Some(spec)) => self.spoil(launch, op, spec.span_bytes(), 0),
            _ => Ok(()),
        }
    }

    /// A product of more than 16 rows as the sum of two products; whether it was one.
    fn halves<C: Dispatch>(&self, launch: &Launch<'_>, op: &Call<C>) -> Result<bool> {
        let operand = |name: &'static str| op.require(name);
        let (a, b, mut out) = (operand("a")?, operand("b")?, operand("out")?);
        let k = a.dims().last().copied().unwrap_or(0);
        let plain = op.spec().name() == "gemm_nt" && a.dims().len() == 2 && a.dtype() == DType::F32;
        let epilogue = op.tensor("c").is_some() || op.tensor("bias").is_some();
        if !plain || epilogue || a.dims()[0] <= 16 || k < 512 {
            return Ok(false);
        }
        let half = |t: &Tensor, start: usize, len: usize| t.narrow(1, start, len);
        let (left, right) = (k / 2, k - k / 2);
        let first = call::Gemm::nt(&half(&a, 0, left)?, &half(&b, 0, left)?, &mut out)?;
        self.inner.gemm(launch, &first)?;
        let second = call::Gemm::nt(&half(&a, left, right)?, &half(&b, left, right)?, &mut out.clone())?;
        self.inner.gemm(launch, &second.accumulate(&out, 1.0)?)?;
        Ok(true)
    }
}

impl Memory for Faulty {
    fn traits(&self, device: Ordinal) -> MemoryTraits {
        self.inner.traits(device)
    }
    fn reserve(&self, device: Ordinal, bytes: usize) -> Result<Segment> {
        self.inner.reserve(device, bytes)
    }
    fn release(&self, device: Ordinal, segment: Segment) -> Result<()> {
        match self.plant {
            Plant::Leak => Ok(()),
            _ => self.inner.release(device, segment),
        }
    }
    fn copy(&self, launch: &Launch<'_>, copy: RawCopy) -> Result<()> {
        match copy {
            RawCopy::Upload { host, address } if self.plant == Plant::EarlyAccess => {
                let toy = self.toy.as_ref().unwrap();
                // SAFETY: the host memory of an upload is not written before the copy is done, which is here.
                toy.poke(address, unsafe { host.bytes_unchecked() })
            }
            copy => self.inner.copy(launch, copy),
        }
    }
    fn memory_info(&self, device: Ordinal) -> Result<MemoryInfo> {
        self.inner.memory_info(device)
    }
}

/// A stream that does not wait for others.
struct Deaf(Arc<dyn RawStream>);

impl RawStream for Deaf {
    fn record(&self) -> Result<Arc<dyn RawEvent>> {
        self.0.record()
    }
    fn wait(&self, _event: &Arc<dyn RawEvent>, _seq: u64) -> Result<()> {
        Ok(())
    }
    fn is_idle(&self) -> bool {
        self.0.is_idle()
    }
    fn synchronize(&self, timeout: Duration) -> Result<()> {
        self.0.synchronize(timeout)
    }
    fn fault(&self) -> Option<Fault> {
        self.0.fault()
    }
    fn as_any(&self) -> &dyn Any {
        self.0.as_any()
    }
}

impl Queue for Faulty {
    fn stream_create(&self, device: Ordinal, options: &StreamOptions) -> Result<Arc<dyn RawStream>> {
        let stream = self.inner.stream_create(device, options)?;
        Ok(if self.plant == Plant::IgnoredEvent { Arc::new(Deaf(stream)) } else { stream })
    }
}

macro_rules! kernels {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        impl Kernels for Faulty {
            $( fn $method(&self, launch: &Launch<'_>, op: &call::$kind) -> Result<()> {
                self.tamper(launch, op)
            } )*
        }
        impl FusedOps for Faulty {
            $( fn $fmethod(&self, launch: &Launch<'_>, op: &call::$fkind) -> Result<()> {
                self.tamper(launch, op)
            } )*
        }
    };
}
portolan_core::for_each_op!(kernels);

impl Collectives for Faulty {}

impl Backend for Faulty {
    fn name(&self) -> &'static str {
        self.inner.name()
    }
    fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.inner.devices()
    }
    fn support(&self, device: Ordinal, query: &OpQuery<'_>) -> Support {
        match (self.plant, query.spec.kind()) {
            (Plant::SupportLie, OpKind::Compare) => Support::Native,
            _ => self.inner.support(device, query),
        }
    }
}

/// Runs the suite on a sample of the cases and gives the names of the tests that failed.
fn failed(plant: Plant) -> Vec<String> {
    let report = Faulty::suite(plant).every(7).run();
    let names: Vec<String> = report.failures().map(|outcome| outcome.name.clone()).collect();
    println!("{plant:?}: {} of {} failed: {names:#?}", names.len(), report.outcomes.len());
    names
}

/// A planted fault fails a test whose name begins with each of `by`, and none that begins otherwise than one of
/// these or `also`.
fn assert_caught(plant: Plant, by: &[&str], also: &[&str]) {
    let names = failed(plant);
    for wanted in by {
        let caught = || names.iter().any(|name| name.starts_with(wanted));
        // A fault of order shows only when threads meet in a certain way: such a test has several chances.
        let again = || (0..50).any(|_| Faulty::suite(plant).contract(wanted).failures().count() > 0);
        assert!(caught() || again(), "{plant:?} was not caught by {wanted}");
    }
    for name in &names {
        let relevant = by.iter().chain(also).any(|prefix| name.starts_with(prefix));
        assert!(relevant, "{plant:?} failed {name}, which is about something else");
    }
}

#[test]
fn a_third_party_backend_of_one_file_passes() {
    let report = Suite::new(|| Ok(ToyBackend::new())).run();
    println!("{report}");
    assert_eq!(report.failures().count(), 0);
    assert!(report.passed() > 500, "only {} passed", report.passed());
    let lines = include_str!("../../../examples/custom_backend.rs").lines().count();
    assert!(lines <= 400, "the example is to stay readable in one go, and has {lines} lines");
}

#[test]
fn with_no_fault_planted_everything_passes() {
    assert_eq!(failed(Plant::Nothing), [""; 0]);
}

#[test]
fn one_wrong_element_is_caught_by_the_oracle() {
    // Rotary embedding converts its positions.
    assert_caught(Plant::WrongElement, &["oracle/cast/"], &["views/cast/", "oracle/rope/"]);
}

#[test]
fn a_write_out_of_bounds_is_caught_by_the_guards() {
    assert_caught(Plant::OutOfBounds, &["guards/cast/"], &[]);
}

#[test]
fn a_lie_in_support_is_caught_by_the_honesty_test() {
    assert_caught(Plant::SupportLie, &["support/compare/"], &[]);
}

#[test]
fn an_ignored_event_is_caught_by_the_tests_of_order_between_streams() {
    let by = [
        "events/a_stream_that_waits_for_an_event_runs_behind_it",
        "streams/a_read_waits_for_the_write_of_another_stream",
        "streams/a_write_waits_for_the_read_of_another_stream",
    ];
    // Replays, memory that moves between streams and faults that travel are ordered by the same waits.
    assert_caught(Plant::IgnoredEvent, &by, &["streams/", "events/", "capture/", "memory/", "poison/"]);
}

#[test]
fn a_leak_is_caught_by_the_test_of_memory_given_back() {
    assert_caught(Plant::Leak, &["memory/dropping_a_device_gives_all_memory_back"], &["memory/"]);
}

#[test]
fn a_wrong_kind_of_error_is_caught_by_the_tests_of_errors() {
    assert_caught(Plant::WrongErrorKind, &["errors/compare/", "errors/cast/"], &["errors/"]);
}

#[test]
fn an_order_of_summation_that_depends_on_the_batch_is_caught_by_the_batch_tests() {
    assert_caught(Plant::BatchDependentOrder, &["batch/gemm/gemm_nt"], &["batch/linear/"]);
}

#[test]
fn an_access_before_its_turn_is_caught_by_the_tests_of_order_within_a_stream() {
    let by = ["streams/an_upload_waits_for_earlier_work_of_its_stream"];
    assert_caught(Plant::EarlyAccess, &by, &["streams/", "memory/", "capture/"]);
}

/// Every so many-th case of attention, of which there are thousands.
const SAMPLED: usize = 13;

#[test]
fn what_attention_forgets_is_caught_by_the_cases_named_after_it_and_by_no_others() {
    let mut kinds: Vec<&str> = attention::ALL.iter().map(|(_, kind, _)| *kind).collect();
    kinds.dedup();
    for kind in OpKind::ALL.iter().filter(|kind| kinds.contains(&kind.name())) {
        let plants: Vec<_> = attention::ALL.iter().filter(|(_, name, _)| *name == kind.name()).collect();
        let named = |(forgets, ..): &&(Forgets, _, _)| {
            (format!("{forgets:?}"), Faulty::suite(Plant::Attention(*forgets)).every(SAMPLED))
        };
        let suites: Vec<(String, Suite)> = plants.iter().map(named).collect();
        let suites: Vec<(&str, &Suite)> = suites.iter().map(|(name, suite)| (name.as_str(), suite)).collect();
        let report = Suite::cases_of(&suites, *kind);
        println!("{}", report.to_string().lines().next().unwrap_or_default());
        for ((name, _), (.., marks)) in suites.iter().zip(plants) {
            let mut caught = 0;
            for outcome in report.failures().filter(|o| o.name.starts_with(&format!("{name}/"))) {
                let text = format!("{} {:?}", outcome.name, outcome.verdict);
                assert!(marks.iter().any(|mark| text.contains(mark)), "{text}: about something else");
                caught += 1;
            }
            println!("{name}: {caught} cases");
            assert!(caught > 0, "nobody missed {name}");
        }
    }
}

#[test]
fn an_exception_of_no_test_is_a_failure() {
    let toy = || Faulty::suite(Plant::Nothing);
    let real = toy().unsupported("cast/*", "f32 only").unsupported("views/softmax/*", "none");
    let real = real.expected_failure("streams/a_read*", "no waits yet").expected_failure("*/threads", "-");
    let report = real.exceptions_match();
    assert_eq!((report.passed(), report.failures().count()), (4, 0), "{report}");
    let report = toy().unsupported("cast/*", "-").expected_failure("gem/*", "typo").exceptions_match();
    let failed: Vec<&str> = report.failures().map(|outcome| outcome.name.as_str()).collect();
    assert_eq!(failed, ["exceptions/expected_failures/gem/*"], "{report}");
    assert!(report.to_string().contains("typo"), "{report}");
    assert!(toy().exceptions_match().outcomes.is_empty());
}

/// A backend that is not there.
fn absent(error: fn() -> OpError) -> Report {
    Suite::new(move || Err(error())).contract("events/*")
}

#[test]
fn a_backend_that_is_unavailable_is_skipped_and_one_that_fails_to_open_fails() {
    let unavailable = || OpError::Unavailable { backend: "toy".into(), what: "no driver".into() };
    let report = absent(unavailable);
    assert!(report.outcomes.iter().all(|o| matches!(o.verdict, Verdict::Skipped(_))), "{report}");
    assert!(report.to_string().contains("no driver") && report.passed() == 0);
    assert!(absent(|| OpError::internal("open", "broken")).failures().count() > 0);
}

#[test]
fn exceptions_that_no_longer_hold_are_failures() {
    let test = "streams/a_read_waits_for_the_write_of_another_stream";
    let run = |suite: Suite| suite.contract(test).outcomes.remove(0).verdict;
    assert_eq!(run(Faulty::suite(Plant::Nothing)), Verdict::Passed);
    let stale = run(Faulty::suite(Plant::Nothing).unsupported("streams/*", "one stream only"));
    assert!(matches!(&stale, Verdict::Failed(what) if what.contains("one stream only")), "{stale:?}");
    let stale = run(Faulty::suite(Plant::Nothing).expected_failure("*", "fixed since"));
    assert!(matches!(&stale, Verdict::Failed(what) if what.contains("fixed since")), "{stale:?}");
    // A fault of order shows only when threads meet in a certain way, so it has several chances.
    let ignored =
        || run(Faulty::suite(Plant::IgnoredEvent).expected_failure("streams/a_read*", "no waits yet"));
    let known = (0..50).map(|_| ignored()).find(|verdict| matches!(verdict, Verdict::ExpectedFailure(_)));
    assert!(
        matches!(&known, Some(Verdict::ExpectedFailure(why)) if why.contains("no waits yet")),
        "{known:?}"
    );
}
