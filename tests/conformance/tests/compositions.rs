//! Every fused operator's cases on a device that has only the kernel core, so that each is composed.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_conformance::{Outcome, ReferenceBackend, Subject, check_operator};
use portolan_core::{Device, OpKind, Registry, StreamOptions};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Tolerances are derived for one kernel that rounds where its contract says; a composition also rounds every
/// intermediate result to f32, once more for each step of the same magnitude. Each part is correctly rounded
/// here, so the parts of one result add up to less than the contract allows a kernel for its approximate
/// exponentials and sums in any order: nothing is added.
const SLACK: f64 = 1.0;

fn reference() -> Device {
    Registry::new().with(ReferenceBackend::new()).open("reference:0").unwrap()
}

fn failures(kind: OpKind, every: usize) -> Vec<String> {
    let stream = reference().stream(StreamOptions::default()).unwrap();
    let start = std::time::Instant::now();
    let subject = Subject { stream: &stream, slack: SLACK };
    let Outcome { passed, unsupported, failures } = check_operator(&subject, kind, every).unwrap();
    println!(
        "{kind}: {passed} passed, {unsupported} unsupported, {} failed in {:?}",
        failures.len(),
        start.elapsed()
    );
    let mut shown: Vec<String> = failures.iter().take(5).map(|f| f.to_string()).collect();
    if failures.len() > shown.len() {
        shown.push(format!("and {} more of {kind}", failures.len() - shown.len()));
    }
    shown
}

/// The failures of all these operators, on as many threads as there are processors.
fn all_failures(kinds: impl Iterator<Item = OpKind>, every: usize) -> Vec<String> {
    let (kinds, next) = (kinds.collect::<Vec<_>>(), AtomicUsize::new(0));
    let take = || std::iter::from_fn(|| kinds.get(next.fetch_add(1, Ordering::Relaxed)).copied());
    let work = || take().flat_map(|kind| failures(kind, every)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn the_reference_device_agrees_with_the_oracles_it_is_made_of() {
    let core = OpKind::ALL.iter().copied().filter(|kind| !kind.is_fused());
    let failed = all_failures(core, 5);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_composition_agrees_with_its_oracle() {
    let fused = OpKind::ALL.iter().copied().filter(|kind| kind.is_fused());
    let failed = all_failures(fused, 1);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
