//! The contract's areas on simulated products, as far as a device without operators can be held to them.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::sim::Adversary;
use portolan_conformance::{Suite, Verdict};
use portolan_core::Backend;
use rig::{assert_empties, backend_in, world};
use std::sync::{Arc, Mutex};

const PRODUCTS: [&str; 4] = ["310P", "A2", "A3", "950"];

/// Runs an area on every product; names in `passes` must pass, the others may say that they need operators.
fn area(pattern: &str, passes: &[&str]) {
    for (index, soc) in PRODUCTS.into_iter().enumerate() {
        for adversary in [Adversary::Late, Adversary::Early, Adversary::Seeded] {
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
            for name in passes {
                let outcome = report.outcomes.iter().find(|outcome| outcome.name == *name).unwrap();
                assert_eq!(outcome.verdict, Verdict::Passed, "{soc}, {adversary:?}: {name}");
            }
            drop(suite);
            for world in worlds.lock().unwrap().drain(..) {
                assert_empties(&world);
            }
        }
    }
}

#[test]
fn memory() {
    area(
        "memory/*",
        &[
            "memory/allocations_are_aligned",
            "memory/allocations_that_live_together_do_not_overlap",
            "memory/the_high_water_mark_and_the_bytes_in_use_are_what_was_held",
            "memory/running_out_names_the_largest_holders_and_the_pool_stays_usable",
        ],
    );
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
fn errors() {
    area("errors/*", &["errors/requests_beyond_all_memory_are_shape_errors_or_exhaustion"]);
}
