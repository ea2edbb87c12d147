//! Random views with proptest; what fails is shrunk to its shortest line.

use crate::views::{FORMS, Form, View, ViewCase};
use crate::{Failure, Promise};
use portolan_core::{OpKind, Stream};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// Extents: mostly small, sometimes beside the width of a vector, sometimes none.
fn extent() -> impl Strategy<Value = usize> {
    prop_oneof![6 => 1usize..6, 2 => 7usize..18, 1 => 31usize..36, 1 => Just(0)]
}

fn view(rank: usize, repeats: bool) -> impl Strategy<Value = View> {
    let order = Just((0..rank).collect::<Vec<_>>()).prop_shuffle();
    let skip = prop::collection::vec(prop_oneof![3 => Just(0usize), 1 => 1usize..4], rank);
    let repeat = prop::collection::vec(prop::bool::weighted(if repeats { 0.15 } else { 0.0 }), rank);
    (order, skip, repeat, prop_oneof![2 => Just(0usize), 1 => 1usize..9]).prop_map(
        |(order, skip, repeat, at)| {
            let repeat = repeat.iter().enumerate().filter_map(|(dim, &on)| on.then_some(dim)).collect();
            View { order, skip, repeat, at }
        },
    )
}

fn case(form: &'static Form) -> impl Strategy<Value = ViewCase> {
    form.ranks.clone().prop_flat_map(move |rank| {
        let views = (view(rank, true), view(rank, true), view(rank, false));
        (prop::collection::vec(extent(), rank), views).prop_map(move |(dims, (a, b, out))| ViewCase {
            form,
            dims,
            views: [a, b, out],
        })
    })
}

/// Runs `count` random cases of each form of an operator; the same ones for the same seed.
pub(crate) fn views(
    kind: OpKind,
    stream: &Stream,
    count: u32,
    seed: u64,
    sink: &mut dyn FnMut(&str, core::result::Result<bool, Failure>),
) {
    for form in FORMS.iter().filter(|form| form.kind == kind) {
        let config =
            Config { cases: count, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let (mut ran, mut last) = (false, None);
        let seen = std::cell::RefCell::new((&mut ran, &mut last));
        let result = TestRunner::new_with_rng(config, rng).run(&case(form), |case| {
            match case.check(stream) {
                // Not legal, or not possible here: another one is drawn.
                None | Some(Ok(false)) => Ok(()),
                Some(Ok(true)) => {
                    *seen.borrow_mut().0 = true;
                    Ok(())
                }
                Some(Err(failure)) => {
                    let what = failure.what.clone();
                    *seen.borrow_mut().1 = Some(failure);
                    Err(TestCaseError::fail(what))
                }
            }
        });
        match result {
            Ok(()) => sink(&format!("{form:?}"), Ok(ran)),
            Err(TestError::Fail(what, shortest)) => {
                let line = shortest.to_string();
                let (promise, contract) =
                    last.map_or((Promise::Views, String::new()), |f: Failure| (f.promise, f.contract));
                let what = format!("{what}; replay with Suite::replay");
                let failure = Failure { promise, case: line, what, contract };
                sink(&format!("{form:?}"), Err(failure));
            }
            Err(TestError::Abort(why)) => {
                let (case, what) = (format!("{form:?}"), why.to_string());
                let failure = Failure { promise: Promise::Views, case, what, contract: String::new() };
                sink(&format!("{form:?}"), Err(failure));
            }
        }
    }
}
