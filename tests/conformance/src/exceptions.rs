//! A backend author's word on tests that do not pass, and what it is worth once they do.

use crate::batch;
use crate::contract::TESTS;
use crate::drawn::Drawn;
use crate::group::test_name;
use crate::operators::{Visitor, visit_kind};
use crate::pattern::matches;
use crate::report::Verdict;
use crate::views::FORMS;
use crate::{Promise, ReferenceBackend};
use portolan_core::{Dispatch, OpKind, Registry, StreamOptions};
use portolan_ops::Result;

/// Permanent gaps and known failures, by pattern, each with its reason.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exceptions {
    pub(crate) unsupported: Vec<(String, String)>,
    pub(crate) expected_failures: Vec<(String, String)>,
}

/// Whether a pattern covers a test. It may leave out the promise: `gemm/*` is `oracle/gemm/*` and all others.
fn covers(pattern: &str, name: &str) -> bool {
    let bare = name.split_once('/').map_or(name, |(_, bare)| bare);
    matches(pattern, name) || matches(pattern, bare)
}

impl Exceptions {
    fn find<'a>(list: &'a [(String, String)], name: &str) -> Option<&'a str> {
        list.iter().find(|(pattern, _)| covers(pattern, name)).map(|(_, reason)| reason.as_str())
    }

    /// What a verdict means under these exceptions. One that no longer holds is a failure, or the list would rot.
    pub(crate) fn judge(&self, name: &str, verdict: Verdict) -> Verdict {
        let unsupported = Self::find(&self.unsupported, name);
        let expected = Self::find(&self.expected_failures, name);
        match (verdict, unsupported, expected) {
            (Verdict::Passed, Some(reason), _) => {
                Verdict::Failed(format!("declared unsupported ({reason}), yet it ran; take the entry out"))
            }
            (Verdict::Passed, _, Some(reason)) => {
                Verdict::Failed(format!("expected to fail ({reason}), yet it passed; take the entry out"))
            }
            (Verdict::Unsupported(_), Some(reason), _) => Verdict::Unsupported(reason.into()),
            (Verdict::Failed(what), _, Some(reason)) => Verdict::ExpectedFailure(format!("{reason}: {what}")),
            (verdict, ..) => verdict,
        }
    }

    /// Every entry: its pattern, and what is wrong with one that no test's name matches.
    pub(crate) fn entries(&self) -> Result<Vec<(String, Verdict)>> {
        let lists = [("unsupported", &self.unsupported), ("expected_failures", &self.expected_failures)];
        let entries = lists.into_iter().flat_map(|(list, entries)| entries.iter().map(move |e| (list, e)));
        let entries: Vec<_> = entries.collect();
        let names = if entries.is_empty() { Vec::new() } else { every_name()? };
        let judged = entries.into_iter().map(|(list, (pattern, reason))| {
            let verdict = match names.iter().any(|name| covers(pattern, name)) {
                true => Verdict::Passed,
                false => Verdict::Failed(format!(
                    "no test has a name like {pattern:?} ({reason}); take the entry out of {list}, or mend it"
                )),
            };
            (format!("exceptions/{list}/{pattern}"), verdict)
        });
        Ok(judged.collect())
    }
}

/// The name of every test that there is. A case that breaks another promise than the one it was run for is booked
/// under the broken one, so it has a name for each.
fn every_name() -> Result<Vec<String>> {
    struct Names(OpKind, Vec<String>);
    impl Names {
        fn add(&mut self, case: &str) {
            self.1.extend(Promise::ALL.map(|promise| test_name(promise, self.0, case)));
        }
    }
    impl Visitor for Names {
        fn case<C: Dispatch>(&mut self, _: usize, drawn: &Drawn<'_, C>) {
            let name = &drawn.case.name;
            self.add(name);
            self.add(&format!("{name}/threads"));
            self.add(&format!("{name}/repeats"));
        }
    }
    let stream = Registry::new().with(ReferenceBackend::new()).open("reference:0")?;
    let stream = stream.stream(StreamOptions::default())?;
    let mut names: Vec<String> = TESTS.iter().map(|test| test.name.to_owned()).collect();
    for &kind in OpKind::ALL {
        let mut of_kind = Names(kind, Vec::new());
        visit_kind(kind, &mut of_kind)?;
        for other in ["cases", "arguments"] {
            of_kind.add(other);
        }
        batch::names(kind, &stream)?.iter().for_each(|form| of_kind.add(form));
        FORMS.iter().filter(|form| form.kind == kind).for_each(|form| of_kind.add(&format!("{form:?}")));
        names.append(&mut of_kind.1);
    }
    Ok(names)
}
