//! How many cases of each operator every product runs natively, composed and not: `support.txt` holds what was reached, and
//! what was native once stays native.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::sim::Adversary;
use portolan_core::{SupportCount, native_fused};
use portolan_ops::{DType, Determinism};
use rig::{open, world};
use std::collections::BTreeMap;
use std::fmt::Write;

const PRODUCTS: [&str; 4] = ["310P", "A2", "A3", "950"];
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support.txt");

/// Fused operators that A3 has a native kernel of for bf16, at least: 70 % of all.
const FUSED_IN_BF16: usize = 26;

/// The counts of every product and operator, in the order of the table.
fn counts() -> Vec<(String, SupportCount)> {
    let mut rows = Vec::new();
    for soc in PRODUCTS {
        let world = world(soc, Adversary::Late, 0);
        let device = open(&world);
        let table = device.support_table(Determinism::RunToRun).unwrap();
        if soc == "A3" {
            let (native, fused) = native_fused(&table, DType::BF16);
            println!("{native} of {fused} fused operators are native in bf16 on A3");
            assert!(native >= FUSED_IN_BF16 && 10 * native >= 7 * fused, "{native} of {fused}");
        }
        for op in table {
            rows.push((format!("{soc} {}", op.kind.name()), op.total));
        }
    }
    rows
}

/// `product operator native composed refused`.
fn parsed(line: &str) -> (String, [usize; 3]) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| words[at].parse().unwrap();
    (format!("{} {}", words[0], words[1]), [number(2), number(3), number(4)])
}

#[test]
fn what_was_native_stays_native_and_nothing_is_newly_refused() {
    let text = std::fs::read_to_string(FILE).unwrap();
    let known: BTreeMap<String, [usize; 3]> = text.lines().map(parsed).collect();
    for (name, SupportCount { native, composed, refused }) in counts() {
        let Some(&[had_native, had_composed, had_refused]) = known.get(&name) else {
            panic!("{name} is not in {FILE}: run the ignored test beside this one, and look at what it wrote")
        };
        // Cases come and go with the contract; then the file is written again.
        let total = native + composed + refused;
        assert_eq!(
            total,
            had_native + had_composed + had_refused,
            "{name} has other cases than {FILE} knows"
        );
        assert!(native >= had_native, "{name}: {native} cases are native, {had_native} were");
        assert!(refused <= had_refused, "{name}: {refused} cases are refused, {had_refused} were");
    }
}

#[test]
#[ignore = "writes the file that the other test reads"]
fn write_the_counts() {
    let mut text = String::new();
    for (name, SupportCount { native, composed, refused }) in counts() {
        writeln!(text, "{name} {native} {composed} {refused}").unwrap();
    }
    std::fs::write(FILE, text).unwrap();
}
