//! The fuzz target of operator arguments without a fuzzer: its corpus, and as many random bytes as a test can afford.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_conformance::{OpKind, check_arguments};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Random inputs for each operator.
const TRIES: u64 = 4000;
/// Of these, what every operator accepts at least: enough to come past its checks in different ways.
const ACCEPTED: usize = 40;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/operators")
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn random_bytes(operator: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (operator as u64) << 56;
    let words = core::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    });
    let bytes = words.take(12).flat_map(u64::to_le_bytes);
    [operator as u8].into_iter().chain(bytes).collect()
}

/// Operators of the table that were not accepted so many times.
fn scarce(accepted: &BTreeMap<OpKind, usize>, wanted: usize) -> Vec<(OpKind, usize)> {
    let counts = OpKind::ALL.iter().map(|kind| (*kind, accepted.get(kind).copied().unwrap_or(0)));
    counts.filter(|(_, count)| *count < wanted).collect()
}

#[test]
fn the_corpus_reaches_every_operator_without_a_panic() {
    let mut accepted = BTreeMap::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        if let Some(kind) = check_arguments(&std::fs::read(entry.unwrap().path()).unwrap()) {
            *accepted.entry(kind).or_default() += 1;
        }
    }
    assert_eq!(scarce(&accepted, 1), [], "the corpus has nothing that these accept");
}

#[test]
fn random_arguments_are_accepted_or_refused_without_a_panic() {
    let mut accepted = BTreeMap::new();
    for operator in 0..OpKind::ALL.len() {
        for seed in 0..TRIES {
            if let Some(kind) = check_arguments(&random_bytes(operator, seed)) {
                *accepted.entry(kind).or_default() += 1;
            }
        }
    }
    println!("{accepted:?}");
    assert_eq!(scarce(&accepted, ACCEPTED), [], "operators that refuse nearly all arguments");
}

/// Writes two accepted inputs for each operator; files a fuzzer found stay as they are.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_corpus() {
    for (operator, kind) in OpKind::ALL.iter().enumerate() {
        let inputs = (0..TRIES).map(|seed| random_bytes(operator, seed));
        for (count, bytes) in inputs.filter(|bytes| check_arguments(bytes).is_some()).take(2).enumerate() {
            std::fs::write(folder().join(format!("{kind}_{count}.bin")), bytes).unwrap();
        }
    }
}
