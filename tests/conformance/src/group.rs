//! The tests of one operator, as its cases pass by: every check of a case shares what was drawn of it.

use crate::account::account_case;
use crate::case::check_drawn;
use crate::drawn::Drawn;
use crate::operators::{Finding, Sample, Visitor, compare, equivalence, repeat};
use crate::report::{Report, TestOutcome, Verdict};
use crate::rig::Rig;
use crate::{CoreOnly, Promise, Subject, Suite};
use portolan_core::{Dispatch, OpKind, Stream, StreamOptions};
use portolan_ops::Result;
use std::time::Instant;

/// Runs whose bytes have to be alike.
const REPEATS: usize = 100;

/// Where the tests of one operator are booked.
pub(crate) struct Group<'a> {
    suite: &'a Suite,
    kind: OpKind,
    report: &'a mut Report,
    since: Instant,
    /// How many held.
    pub(crate) passed: usize,
}

impl<'a> Group<'a> {
    pub(crate) fn new(suite: &'a Suite, kind: OpKind, report: &'a mut Report) -> Self {
        Self { suite, kind, report, since: Instant::now(), passed: 0 }
    }

    /// Books a case under the promise it was run for, or under the one it broke.
    pub(crate) fn case(&mut self, promise: Promise, case: &str, found: Finding) {
        let (promise, verdict) = match found {
            Ok(true) => (promise, Verdict::Passed),
            Ok(false) => (promise, Verdict::Unsupported("support() says no".into())),
            Err(failure) => (failure.promise, Verdict::Failed(failure.to_string())),
        };
        let name = test_name(promise, self.kind, case);
        let verdict = self.suite.exceptions().judge(&name, verdict);
        self.passed += usize::from(verdict == Verdict::Passed);
        let now = Instant::now();
        let took = now - std::mem::replace(&mut self.since, now);
        self.report.outcomes.push(TestOutcome { name, verdict, took });
    }
}

/// The name of a test of an operator. Most case names begin with the operator's.
pub(crate) fn test_name(promise: Promise, kind: OpKind, case: &str) -> String {
    let kind = kind.name();
    let case = case.strip_prefix(kind).and_then(|rest| rest.strip_prefix('/')).unwrap_or(case);
    format!("{}/{kind}/{case}", promise.name())
}

/// Every sampled case: against the oracle, or as far as that goes without data.
pub(crate) struct CasesOn<'a> {
    pub(crate) rig: &'a Rig,
    pub(crate) stream: &'a Stream,
    pub(crate) sample: Sample,
    pub(crate) group: Group<'a>,
}

impl Visitor for CasesOn<'_> {
    fn case<C: Dispatch>(&mut self, index: usize, drawn: &Drawn<'_, C>) {
        if !self.sample.takes(index) {
            return;
        }
        self.group.since = Instant::now();
        let (promise, found) = match self.rig.keeps_data() {
            true => (Promise::Oracle, check_drawn(&Subject { stream: self.stream, slack: 1.0 }, drawn)),
            false => (Promise::Account, account_case(self.stream, drawn.case)),
        };
        self.group.case(promise, &drawn.case.name, found);
    }
}

/// One device after the other.
impl<V: Visitor> Visitor for Vec<V> {
    fn case<C: Dispatch>(&mut self, index: usize, drawn: &Drawn<'_, C>) {
        self.iter_mut().for_each(|visitor| visitor.case(index, drawn));
    }
}

/// What is promised of a case beside its values: the composition, threads, repetition.
pub(crate) struct Beside {
    /// A stream on which the operator is composed, where it has a composition.
    composed: Option<Stream>,
    threads: [Stream; 3],
    // A few cases are enough to see bits change, and dear enough to be few.
    threaded: Sample,
    repeated: Sample,
}

impl Beside {
    pub(crate) fn new(kind: OpKind, rig: &Rig, sample: Sample) -> Result<Self> {
        let composed = match kind.is_fused() {
            true => Some(Rig::new(CoreOnly::new(rig.backend.clone()))?.stream()?),
            false => None,
        };
        let threads = |n| rig.stream_with(StreamOptions { threads: n, ..StreamOptions::default() });
        let sparse = |every: usize, phase: usize| Sample { every: every * sample.every, phase, ..sample };
        Ok(Self {
            composed,
            threads: [threads(None)?, threads(Some(1))?, threads(Some(3))?],
            threaded: sparse(11, 6),
            repeated: sparse(67, 9),
        })
    }
}

/// Everything that is asked of each case.
pub(crate) struct Everything<'a> {
    pub(crate) cases: CasesOn<'a>,
    /// Nothing on a device without data.
    pub(crate) beside: Option<Beside>,
}

impl Visitor for Everything<'_> {
    fn case<C: Dispatch>(&mut self, index: usize, drawn: &Drawn<'_, C>) {
        self.cases.case(index, drawn);
        let (Some(beside), CasesOn { stream, sample, group, .. }) = (&self.beside, &mut self.cases) else {
            return;
        };
        let name = &drawn.case.name;
        if let (Some(composed), true) = (&beside.composed, sample.takes(index)) {
            group.case(Promise::Equivalence, name, equivalence(stream, composed, drawn));
        }
        if beside.threaded.takes(index) {
            let found = compare(&beside.threads, drawn);
            group.case(Promise::Determinism, &format!("{name}/threads"), found);
        }
        if beside.repeated.takes(index) {
            let found = repeat(stream, REPEATS, drawn);
            group.case(Promise::Determinism, &format!("{name}/repeats"), found);
        }
    }
}
