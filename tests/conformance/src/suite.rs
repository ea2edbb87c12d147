//! The suite: a backend and its exceptions, run as functions that report or as tests of the test runner.

use crate::arguments::honest_kind;
use crate::batch::batch;
use crate::contract::{ContractTest, TESTS};
use crate::coverage::gaps;
use crate::exceptions::Exceptions;
use crate::group::{Beside, CasesOn, Everything, Group};
use crate::operators::{Sample, survey_kind, visit_kind};
use crate::rig::{Rig, Stop};
use crate::views::ViewCase;
use crate::{Failure, Promise, Report, TestOutcome, Verdict};
use portolan_core::{Backend, OpKind, Stream, StreamOptions};
use portolan_ops::{Determinism, OpError, Result};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Random views of each form.
#[cfg(feature = "proptest")]
const VIEWS: u32 = 48;

/// What a backend is held against, and the author's word on what it cannot do.
pub struct Suite {
    open: Box<dyn Fn() -> Result<Arc<dyn Backend>> + Send + Sync>,
    exceptions: Exceptions,
    every: usize,
    shard: (usize, usize),
    seed: u64,
    tells_late: bool,
}

impl Suite {
    /// The suite for the backend that `open` makes; each test opens its own.
    ///
    /// An `open` that answers `Unavailable` skips every test, visibly; any other error fails them.
    pub fn new(open: impl Fn() -> Result<Arc<dyn Backend>> + Send + Sync + 'static) -> Self {
        let (every, shard, seed, tells_late) = (1, (0, 1), 0, false);
        Self { open: Box::new(open), exceptions: Exceptions::default(), every, shard, seed, tells_late }
    }

    /// Declares tests, by pattern, that the backend will never pass, and why. One that runs is a failure.
    ///
    /// Patterns match names such as `gemm/gemm_nt/f16_f16_f16/one` or `capture/…`, with or without the promise before
    /// them (`oracle/gemm/…`); `*` stands for any characters.
    pub fn unsupported(mut self, pattern: &str, reason: &str) -> Self {
        self.exceptions.unsupported.push((pattern.into(), reason.into()));
        self
    }

    /// Declares tests, by pattern, that fail for now, and why. One that passes is a failure.
    pub fn expected_failure(mut self, pattern: &str, reason: &str) -> Self {
        self.exceptions.expected_failures.push((pattern.into(), reason.into()));
        self
    }

    /// Says that the device tells of a fault when one waits: its error then names the first submission that it may be of,
    /// and the driver's text says between which it is, and their operators; what a stream did since its last wait counts as lost.
    /// A blocking stream names the one.
    pub fn tells_late(mut self) -> Self {
        self.tells_late = true;
        self
    }

    /// Only every n-th case of each operator.
    pub fn every(mut self, n: usize) -> Self {
        self.every = n.max(1);
        self
    }

    /// Only the `part`-th of `parts` parts of the cases, counted from 0.
    pub fn shard(mut self, part: usize, parts: usize) -> Self {
        self.shard = (part, parts.max(1));
        self
    }

    /// Chooses other random views.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Every operator and every test of the contract.
    pub fn run(&self) -> Report {
        let mut report = self.contract("*");
        for &kind in OpKind::ALL {
            report.extend(self.operator(kind));
        }
        report.extend(self.exceptions_match());
        report
    }

    /// All that is promised of one operator.
    pub fn operator(&self, kind: OpKind) -> Report {
        self.with_rig(kind.name(), |rig, report| self.operator_on(kind, rig, report))
    }

    /// The operators whose cases agree with the oracle and leave other memory alone, and nothing else of them:
    /// what is left to ask of a second executor or instruction set. Without data: whose cases are accounted for.
    pub fn cases(&self, kind: OpKind) -> Report {
        Self::cases_of(&[("", self)], kind)
    }

    /// As [`Suite::cases`], for several suites at once, whose names come first in those of the tests: every case is
    /// drawn, and its oracle asked, once for all of them.
    pub fn cases_of(suites: &[(&str, &Suite)], kind: OpKind) -> Report {
        let mut reports: Vec<Report> = suites.iter().map(|_| Report::default()).collect();
        let mut opened = Vec::new();
        for ((_, suite), report) in suites.iter().zip(&mut reports) {
            let rig = suite.rig();
            let both = rig.and_then(|rig| rig.stream().map(|s| (rig, s)).map_err(|e| failed(&e)));
            opened.push(both.map_err(|verdict| report.add(kind.name(), verdict, Duration::ZERO)).ok());
        }
        let mut all = Vec::new();
        for ((&(_, suite), opened), report) in suites.iter().zip(&opened).zip(&mut reports) {
            let Some((rig, stream)) = opened else { continue };
            let group = Group::new(suite, kind, report);
            all.push(CasesOn { rig, stream, sample: suite.sample(), group });
        }
        let ended = guarded(|| visit_kind(kind, &mut all));
        let mut whole = Report::default();
        for ((name, _), mut report) in suites.iter().zip(reports) {
            let named = |outcome: &mut TestOutcome| outcome.name = format!("{name}/{}", outcome.name);
            report.outcomes.iter_mut().filter(|_| !name.is_empty()).for_each(named);
            whole.extend(report);
        }
        if let Err(verdict) = ended {
            whole.add(kind.name(), verdict, Duration::ZERO);
        }
        whole
    }

    /// Whether every exception is one of a test that there is: a pattern that matches no name protects nothing.
    pub fn exceptions_match(&self) -> Report {
        let mut report = Report::default();
        match self.exceptions.entries() {
            Ok(entries) => {
                entries.into_iter().for_each(|(name, verdict)| report.add(name, verdict, Duration::ZERO));
            }
            Err(error) => report.add("exceptions", failed(&error), Duration::ZERO),
        }
        report
    }

    /// The tests of the contract whose names match a pattern, each on a device of its own: `memory/*`.
    pub fn contract(&self, pattern: &str) -> Report {
        let mut report = Report::default();
        for test in TESTS.iter().filter(|test| crate::pattern::matches(pattern, test.name)) {
            report.extend(self.contract_test(test));
        }
        report
    }

    /// Runs one random view again: the line that a failure of `views/…` prints.
    pub fn replay(&self, line: &str) -> Report {
        self.with_rig("replay", |rig, report| {
            let case: ViewCase = line.parse()?;
            let start = Instant::now();
            let verdict = match case.check(&rig.stream()?) {
                None => Verdict::Failed("the operator does not take these views".into()),
                Some(Ok(true)) => Verdict::Passed,
                Some(Ok(false)) => Verdict::Unsupported("support() says no".into()),
                Some(Err(failure)) => Verdict::Failed(failure.to_string()),
            };
            report.outcomes.push(TestOutcome {
                name: format!("views/{line}"),
                verdict,
                took: start.elapsed(),
            });
            Ok(())
        })
    }

    pub(crate) fn exceptions(&self) -> &Exceptions {
        &self.exceptions
    }

    fn sample(&self) -> Sample {
        Sample { every: self.every, shard: self.shard, ..Sample::ALL }
    }

    /// A freshly opened device, or what becomes of the tests without one.
    fn rig(&self) -> core::result::Result<Rig, Verdict> {
        (self.open)().and_then(|backend| Rig::telling(backend, self.tells_late)).map_err(
            |error| match error {
                OpError::Unavailable { backend, what } => Verdict::Skipped(format!("{backend}: {what}")),
                error => Verdict::Failed(format!("opening the backend: {error}")),
            },
        )
    }

    /// Opens a device and runs a group of tests on it; what goes wrong around them is a failure of the group.
    fn with_rig(&self, name: &str, group: impl FnOnce(&Rig, &mut Report) -> Result<()>) -> Report {
        let mut report = Report::default();
        let start = Instant::now();
        if let Err(verdict) = self.rig().and_then(|rig| guarded(|| group(&rig, &mut report))) {
            report.add(name, verdict, start.elapsed());
        }
        report
    }

    fn contract_test(&self, test: &ContractTest) -> Report {
        self.with_rig(test.name, |rig, report| {
            let start = Instant::now();
            let verdict = match (test.run)(rig) {
                Ok(()) => Verdict::Passed,
                Err(Stop::Unsupported(why)) => Verdict::Unsupported(why),
                Err(Stop::Broken(what)) => Verdict::Failed(what),
            };
            let verdict = self.exceptions.judge(test.name, verdict);
            report.outcomes.push(TestOutcome { name: test.name.into(), verdict, took: start.elapsed() });
            Ok(())
        })
    }

    fn operator_on(&self, kind: OpKind, rig: &Rig, report: &mut Report) -> Result<()> {
        let (stream, sample) = (rig.stream()?, self.sample());
        let beside = if rig.keeps_data() { Some(Beside::new(kind, rig, sample)?) } else { None };
        let group = Group::new(self, kind, report);
        let mut everything = Everything { cases: CasesOn { rig, stream: &stream, sample, group }, beside };
        visit_kind(kind, &mut everything)?;
        let mut group = everything.cases.group;
        let ran = group.passed > 0;
        if rig.keeps_data() {
            self.values_on(kind, rig, &stream, &mut group)?;
        }

        let level = stream.options().determinism;
        let seen = survey_kind(kind, &rig.device, level)?;
        let missing = gaps(kind, &seen, &rig.device, level);
        let found = if missing.is_empty() { Ok(ran) } else { Err(missing.join("; ")) };
        let failed = |what| Failure {
            promise: Promise::Coverage,
            case: kind.name().into(),
            what,
            contract: String::new(),
        };
        group.case(Promise::Coverage, "cases", found.map_err(failed));
        Ok(())
    }

    /// What is promised of an operator beside its cases: batches, views, any arguments.
    fn values_on(&self, kind: OpKind, rig: &Rig, stream: &Stream, group: &mut Group<'_>) -> Result<()> {
        let invariant =
            StreamOptions { determinism: Determinism::BatchInvariant, ..StreamOptions::default() };
        for (form, held) in batch(kind, &rig.stream_with(invariant)?)? {
            let name = format!("{}/{form}", kind.name());
            let failed = |(promise, what)| Failure { promise, case: name, what, contract: String::new() };
            group.case(Promise::Batch, form, held.map_err(failed));
        }

        #[cfg(feature = "proptest")]
        if self.shard.0 == 0 {
            let count = VIEWS.div_ceil(self.every as u32);
            crate::property::views(kind, stream, count, self.seed, &mut |form, found| {
                group.case(Promise::Views, form, found);
            });
        }
        #[cfg(not(feature = "proptest"))]
        let _ = stream;
        group.case(Promise::Support, "arguments", honest_kind(kind, rig, self.every, self.seed)?);
        Ok(())
    }

    /// The end of a test of the test runner: prints what became of it.
    ///
    /// # Panics
    /// When a test in the report failed.
    pub fn assert(report: &Report) {
        if let Some(why) = report.skipped() {
            // Past the runner's capture: a suite that did not run must not look like one that passed.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
        }
        println!("{report}");
        let mut slowest: Vec<&TestOutcome> = report.outcomes.iter().collect();
        slowest.sort_by_key(|outcome| std::cmp::Reverse(outcome.took));
        for outcome in slowest.iter().take(10).filter(|outcome| outcome.took > Duration::from_millis(50)) {
            println!("{:>8.1?}  {}", outcome.took, outcome.name);
        }
        let failed = report.failures().count();
        assert!(failed == 0, "{failed} of {} failed", report.outcomes.len());
    }
}

/// What a group of tests ends with, when not well.
fn guarded(group: impl FnOnce() -> Result<()>) -> core::result::Result<(), Verdict> {
    match catch_unwind(AssertUnwindSafe(group)) {
        Ok(ended) => ended.map_err(|error| failed(&error)),
        Err(panic) => Err(Verdict::Failed(format!("panicked: {}", panic_text(panic.as_ref())))),
    }
}

fn failed(error: &OpError) -> Verdict {
    Verdict::Failed(error.to_string())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref().map(String::as_str)).unwrap_or("?")
}

/// Tests of the test runner that hold a backend against the suite: one for each operator, one for each area of
/// the contract.
///
/// ```ignore
/// portolan_conformance::suite! {
///     backend: || MyBackend::open(),                          // Err(Unavailable) skips, any other error fails
///     unsupported: [("grouped_gemm/masked/*", "no device-side counts")],
///     expected_failures: [("attention/f16_f16_f16/prefill_128", "wrong from 128 columns on")],
/// }
/// ```
#[macro_export]
macro_rules! suite {
    (
        backend: $open:expr
        $(, unsupported: [$( ($gap:expr, $why:expr) ),* $(,)?])?
        $(, expected_failures: [$( ($known:expr, $because:expr) ),* $(,)?])?
        $(,)?
    ) => {
        fn portolan_suite() -> $crate::Suite {
            $crate::Suite::new(|| {
                let open = $open;
                Ok(open()?)
            })
            $($( .unsupported($gap, $why) )*)?
            $($( .expected_failure($known, $because) )*)?
        }

        mod operators {
            $crate::for_each_op!($crate::operator_tests);
        }

        mod contract {
            $crate::for_each_contract!($crate::contract_tests);
        }

        #[test]
        fn exceptions() {
            $crate::Suite::assert(&portolan_suite().exceptions_match());
        }
    };
}

/// One test for each operator of the table.
#[doc(hidden)]
#[macro_export]
macro_rules! operator_tests {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => {
        $( #[test] fn $method() { $crate::Suite::assert(&super::portolan_suite().operator($crate::OpKind::$kind)); } )*
        $( #[test] fn $fmethod() { $crate::Suite::assert(&super::portolan_suite().operator($crate::OpKind::$fkind)); } )*
    };
}

/// One test for each area of the contract.
#[doc(hidden)]
#[macro_export]
macro_rules! contract_tests {
    ($( $area:ident { $( $test:ident; )* } )*) => {
        $( #[test] fn $area() {
            $crate::Suite::assert(&super::portolan_suite().contract(concat!(stringify!($area), "/*")));
        } )*
    };
}
