//! Every operator's cases on every executor and instruction-set path, against the f64 oracles.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_conformance::{Outcome, Subject, check_operator, check_round_trips, compare_streams};
use portolan_core::{OpKind, Registry, StreamOptions};
use portolan_cpu::{CpuBackend, CpuOptions, Executor, Isa};

fn run_all(options: CpuOptions, every: usize) {
    let label = format!("{options:?}");
    let registry = Registry::new().with(CpuBackend::new(options).unwrap());
    let device = registry.open("cpu:0").unwrap();
    let mut failed = Vec::new();
    let stream = device.stream(StreamOptions::default()).unwrap();
    let packed = check_round_trips(&stream, every).unwrap();
    assert_eq!(packed.unsupported, 0, "{label}: a weight has no packed form");
    failed.extend(packed.failures.into_iter().take(5).map(|f| f.to_string()));
    for &kind in OpKind::ALL {
        let stream = device.stream(StreamOptions::default()).unwrap();
        let Outcome { passed, unsupported, failures } =
            check_operator(&Subject { stream: &stream, slack: 1.0 }, kind, every).unwrap();
        println!("{kind}: {passed} passed, {unsupported} unsupported, {} failed", failures.len());
        failed.extend(failures.into_iter().take(5).map(|f| f.to_string()));
    }
    assert!(failed.is_empty(), "{label}\n{}", failed.join("\n"));
}

#[test]
fn all_operators_agree_with_their_oracles_when_queued() {
    run_all(CpuOptions { threads: Some(2), ..CpuOptions::default() }, 1);
}

#[test]
fn operators_agree_with_their_oracles_inline_and_under_chaos() {
    run_all(CpuOptions { executor: Executor::Inline, threads: Some(2), ..CpuOptions::default() }, 10);
    run_all(
        CpuOptions { executor: Executor::Chaotic { seed: 7 }, threads: Some(3), ..CpuOptions::default() },
        10,
    );
}

#[test]
fn all_operators_agree_with_their_oracles_on_every_instruction_set_path() {
    for isa in Isa::ALL.into_iter().filter(|isa| *isa < Isa::detect()) {
        run_all(CpuOptions { isa: Some(isa), executor: Executor::Inline, ..CpuOptions::default() }, 1);
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
