//! The fuzz target of operator arguments without a fuzzer: its corpus, and as many random bytes as a test can afford.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../fuzz/operators.rs"]
mod operators;

use operators::{OPERATORS, build};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Random inputs for each operator.
const TRIES: u64 = 4000;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/operators")
}

/// SplitMix64 (Steele, Lea and Flood 2014).
fn random_bytes(operator: u8, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(operator) << 56;
    let words = core::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    });
    let bytes = words.take(8).flat_map(u64::to_le_bytes);
    [operator].into_iter().chain(bytes).collect()
}

#[test]
fn every_corpus_file_is_accepted_or_refused_without_a_panic() {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        names.extend(build(&std::fs::read(entry.unwrap().path()).unwrap()));
    }
    assert!(names.len() >= 25, "the corpus reaches only {names:?}");
}

#[test]
fn random_arguments_are_accepted_or_refused_without_a_panic() {
    let mut accepted: BTreeMap<String, usize> = BTreeMap::new();
    for operator in 0..OPERATORS {
        for seed in 0..TRIES {
            if let Some(name) = build(&random_bytes(operator, seed)) {
                *accepted.entry(name).or_default() += 1;
            }
        }
    }
    println!("{accepted:?}");
    assert!(accepted.len() >= 25, "{accepted:?}");
}

/// Writes two accepted inputs for each operator; files a fuzzer found stay as they are.
#[test]
#[ignore = "writes into the source tree"]
fn write_the_corpus() {
    let mut written: BTreeMap<String, usize> = BTreeMap::new();
    for operator in 0..OPERATORS {
        for seed in 0..TRIES {
            let bytes = random_bytes(operator, seed);
            let Some(name) = build(&bytes) else { continue };
            let count = written.entry(name.clone()).or_default();
            if *count < 2 {
                std::fs::write(folder().join(format!("{name}_{count}.bin")), bytes).unwrap();
                *count += 1;
            }
        }
    }
}
