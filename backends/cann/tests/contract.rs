//! The contract's areas beyond operators on simulated products. Poison is held in `queue.rs`: an index outside is the
//! vendor's exception here, found when one waits, where the suite wants a fault of data that names its submission.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::sim::Adversary;
use portolan_conformance::{Suite, Verdict};
use portolan_core::Backend;
use rig::{assert_empties, backend_in, world};
use std::sync::{Arc, Mutex};

/// Every schedule on one product; the others differ in their operators alone.
const RIGS: [(&str, Adversary); 6] = [
    ("A3", Adversary::Late),
    ("A3", Adversary::Early),
    ("A3", Adversary::Seeded),
    ("310P", Adversary::Seeded),
    ("A2", Adversary::Seeded),
    ("950", Adversary::Late),
];

/// Runs an area; every test must pass but those that may say that they cannot be done here.
fn area(pattern: &str, may_refuse: &[&str]) {
    for (index, (soc, adversary)) in RIGS.into_iter().enumerate() {
        let worlds = Arc::new(Mutex::new(Vec::new()));
        let kept = worlds.clone();
        let suite = Suite::new(move || {
            let world = world(soc, adversary, index as u64);
            let backend: Arc<dyn Backend> = backend_in(&world);
            kept.lock().unwrap().push(world);
            Ok(backend)
        });
        let report = suite.contract(pattern);
        Suite::assert(&report);
        assert!(report.skipped().is_none());
        for outcome in &report.outcomes {
            let refused = matches!(outcome.verdict, Verdict::Unsupported(_));
            let name = &outcome.name;
            assert!(
                !refused || may_refuse.contains(&name.as_str()),
                "{soc}, {adversary:?}: {name} was refused"
            );
        }
        drop(suite);
        for world in worlds.lock().unwrap().drain(..) {
            assert_empties(&world);
        }
    }
}

#[test]
fn memory() {
    area("memory/*", &[]);
}

#[test]
fn streams() {
    area("streams/*", &[]);
}

#[test]
fn events() {
    area("events/*", &[]);
}

#[test]
fn capture() {
    area("capture/*", &[]);
}

#[test]
fn errors() {
    // 310P has no product of f32, which one of them counts.
    area("errors/*", &["errors/the_report_adds_up_the_cost_of_every_run"]);
}
