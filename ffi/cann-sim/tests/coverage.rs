//! Every symbol that is declared is simulated, or is in `absent.txt` with the reason why not.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::{Collectives, Descriptors, Operators, Runtime};
use rig::World;
use std::collections::BTreeSet;

/// Symbols with a line each: the symbol, then why it is absent. An operator's line stands for both of its phases.
const ABSENT: &str = include_str!("../absent.txt");

#[test]
fn declared_symbols_are_simulated_or_absent_for_a_stated_reason() {
    let mut excused = BTreeSet::new();
    for line in ABSENT.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (symbol, reason) = line.split_once(' ').unwrap_or((line, ""));
        assert!(reason.trim().len() > 10, "{symbol}: no reason is given");
        assert!(excused.insert(symbol), "{symbol} is there twice");
    }
    let world = World::of("A3");
    let libraries = world.0.libraries();
    let missing = |names: &[&'static str], has: &dyn Fn(&str) -> bool| -> Vec<&'static str> {
        names.iter().copied().filter(|name| !has(name)).collect()
    };
    let missing = [
        missing(Runtime::NAMES, &|name| libraries.runtime.has(name)),
        missing(Descriptors::NAMES, &|name| libraries.descriptors.has(name)),
        missing(Collectives::NAMES, &|name| libraries.collectives.has(name)),
        missing(Operators::NAMES, &|name| libraries.operators.has(name)),
    ];
    let missing: BTreeSet<&str> =
        missing.concat().iter().map(|name| name.strip_suffix("GetWorkspaceSize").unwrap_or(name)).collect();
    let silent: Vec<_> = missing.difference(&excused).collect();
    assert!(
        silent.is_empty(),
        "{} symbols are absent without a word in absent.txt: {silent:?}",
        silent.len()
    );
    let stale: Vec<_> = excused.difference(&missing).collect();
    assert!(stale.is_empty(), "absent.txt excuses what is simulated or not declared: {stale:?}");
}
