//! What the other executors, instruction sets and thread counts add to `conformance.rs`: samples of the cases,
//! the contract under random delays, and bits that stay the same.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_conformance::{Report, Suite, check_round_trips, compare_streams};
use portolan_core::{OpKind, Registry, StreamOptions};
use portolan_cpu::{CpuBackend, CpuOptions, Executor, Isa};
use std::sync::atomic::{AtomicU64, Ordering};

fn suite(options: CpuOptions) -> Suite {
    Suite::new(move || Ok(CpuBackend::new(options.clone())?))
}

/// The cases of every operator, of several suites side by side.
fn assert_cases(suites: &[(&str, Suite)]) {
    let suites: Vec<(&str, &Suite)> = suites.iter().map(|(name, suite)| (*name, suite)).collect();
    let mut report = Report::default();
    for &kind in OpKind::ALL {
        report.extend(Suite::cases_of(&suites, kind));
    }
    Suite::assert(&report);
}

#[test]
fn all_operators_agree_with_their_oracles_on_every_instruction_set_path_inline_and_under_chaos() {
    let mut suites = Vec::new();
    for (isa, name) in [(Isa::Portable, "portable"), (Isa::Avx2, "avx2"), (Isa::Avx512, "avx512")] {
        let options = CpuOptions { isa: Some(isa), executor: Executor::Inline, ..CpuOptions::default() };
        // The best one is the default, which `conformance.rs` runs.
        if isa < Isa::detect() {
            suites.push((name, suite(options)));
        }
    }
    let executors = [("inline", Executor::Inline, 2), ("chaotic", Executor::Chaotic { seed: 7 }, 3)];
    for (name, executor, threads) in executors {
        let options = CpuOptions { executor, threads: Some(threads), ..CpuOptions::default() };
        suites.push((name, suite(options).every(10)));
    }
    assert_cases(&suites);
}

#[test]
fn packed_weights_come_back_as_they_were_on_every_instruction_set_path() {
    for isa in Isa::ALL.into_iter().filter(|isa| *isa <= Isa::detect()) {
        let options = CpuOptions { isa: Some(isa), executor: Executor::Inline, ..CpuOptions::default() };
        let registry = Registry::new().with(CpuBackend::new(options).unwrap());
        let stream = registry.open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap();
        let packed = check_round_trips(&stream, 1).unwrap();
        assert_eq!(packed.unsupported, 0, "{isa:?}: a weight has no packed form");
        assert!(packed.failures.is_empty(), "{isa:?}: {}", packed.failures[0]);
    }
}

#[test]
fn the_contract_holds_inline() {
    let options = CpuOptions { executor: Executor::Inline, threads: Some(1), ..CpuOptions::default() };
    Suite::assert(&suite(options).contract("*"));
}

/// Areas of the contract under chaos with every seed. What is waited for is mostly delays, so some seeds run side by side.
fn assert_under_delays(seeds: u64, areas: &[&str]) {
    let next = AtomicU64::new(0);
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&seed| seed < seeds) {
            let executor = Executor::Chaotic { seed };
            let options = CpuOptions { executor, threads: Some(1), ..CpuOptions::default() };
            for area in areas {
                Suite::assert(&suite(options.clone()).contract(area));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(work);
        }
    });
}

#[test]
fn the_contract_holds_under_random_delays() {
    assert_under_delays(20, &["streams/*", "events/*", "poison/*", "capture/*", "memory/a_freed*"]);
}

#[test]
fn groups_of_ranks_hold_under_random_delays() {
    assert_under_delays(3, &["comm/*"]);
}

#[test]
fn all_operators_write_the_same_bits_for_any_number_of_threads() {
    let paths: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| *isa <= Isa::detect()).collect();
    let streams = |isa: &Isa| {
        let of = |threads| {
            let (isa, executor) = (Some(*isa), Executor::Inline);
            let options = CpuOptions { threads: Some(threads), isa, executor, ..CpuOptions::default() };
            let registry = Registry::new().with(CpuBackend::new(options).unwrap());
            registry.open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap()
        };
        [1, 2, 3, 8].map(of).to_vec()
    };
    let groups: Vec<_> = paths.iter().map(streams).collect();
    let mut compared = 0;
    for &kind in OpKind::ALL {
        let outcome = compare_streams(&groups, kind, 3).unwrap();
        assert!(outcome.failures.is_empty(), "{}", outcome.failures[0]);
        compared += outcome.passed;
    }
    assert!(compared > 500 * paths.len(), "only {compared} cases were compared on {paths:?}");
}
