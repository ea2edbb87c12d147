//! What the other executors, instruction sets and thread counts add to `conformance.rs`: samples of the cases,
//! the contract under random delays, and bits that stay the same.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_conformance::{Report, Suite, check_round_trips, compare_streams};
use portolan_core::{OpKind, Registry, StreamOptions};
use portolan_cpu::{CpuBackend, CpuOptions, Executor, Isa};

fn suite(options: CpuOptions) -> Suite {
    Suite::new(move || Ok(CpuBackend::new(options.clone())?))
}

/// The cases of every operator.
fn cases(suite: &Suite) -> Report {
    let mut report = Report::default();
    for &kind in OpKind::ALL {
        report.extend(suite.cases(kind));
    }
    report
}

#[test]
fn operators_agree_with_their_oracles_inline_and_under_chaos() {
    for (executor, threads) in [(Executor::Inline, 2), (Executor::Chaotic { seed: 7 }, 3)] {
        let options = CpuOptions { executor, threads: Some(threads), ..CpuOptions::default() };
        Suite::assert(&cases(&suite(options).every(10)));
    }
}

#[test]
fn all_operators_agree_with_their_oracles_on_every_instruction_set_path() {
    for isa in Isa::ALL.into_iter().filter(|isa| *isa < Isa::detect()) {
        let options = CpuOptions { isa: Some(isa), executor: Executor::Inline, ..CpuOptions::default() };
        Suite::assert(&cases(&suite(options)));
    }
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

#[test]
fn the_contract_holds_under_random_delays() {
    for seed in 0..20 {
        let executor = Executor::Chaotic { seed };
        let options = CpuOptions { executor, threads: Some(1), ..CpuOptions::default() };
        for area in ["streams/*", "events/*", "poison/*", "capture/*", "memory/a_freed*"] {
            Suite::assert(&suite(options.clone()).contract(area));
        }
    }
}

#[test]
fn groups_of_ranks_hold_under_random_delays() {
    for seed in 0..3 {
        let executor = Executor::Chaotic { seed };
        let options = CpuOptions { executor, threads: Some(1), ..CpuOptions::default() };
        Suite::assert(&suite(options).contract("comm/*"));
    }
}

#[test]
fn all_operators_write_the_same_bits_for_any_number_of_threads() {
    for isa in Isa::ALL.into_iter().filter(|isa| *isa <= Isa::detect()) {
        let streams = [1, 2, 3, 8].map(|threads| {
            let executor = Executor::Inline;
            let options =
                CpuOptions { threads: Some(threads), isa: Some(isa), executor, ..CpuOptions::default() };
            let registry = Registry::new().with(CpuBackend::new(options).unwrap());
            registry.open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap()
        });
        let mut compared = 0;
        for &kind in OpKind::ALL {
            let outcome = compare_streams(&streams, kind, 3).unwrap();
            assert!(outcome.failures.is_empty(), "{isa:?}: {}", outcome.failures[0]);
            compared += outcome.passed;
        }
        assert!(compared > 500, "{isa:?}: only {compared} cases were compared");
    }
}
