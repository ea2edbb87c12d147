//! Every fused operator composed from the CPU's kernel core, against the f64 oracles: the numbers a new
//! backend gets before it overrides anything.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_conformance::{CoreOnly, Outcome, Subject, check_operator};
use portolan_core::{OpKind, Registry, StreamOptions};
use portolan_cpu::{CpuBackend, CpuOptions, Executor};

#[test]
fn every_composition_of_the_cpus_kernels_agrees_with_its_oracle() {
    let options = CpuOptions { executor: Executor::Inline, threads: Some(2), ..CpuOptions::default() };
    let registry = Registry::new().with(CoreOnly::new(CpuBackend::new(options).unwrap()));
    let device = registry.open("cpu:0").unwrap();
    let mut failed = Vec::new();
    for &kind in OpKind::ALL.iter().filter(|kind| kind.is_fused()) {
        let stream = device.stream(StreamOptions::default()).unwrap();
        let subject = Subject { stream: &stream, slack: 1.0 };
        let Outcome { passed, unsupported, failures } = check_operator(&subject, kind, 1).unwrap();
        println!("{kind}: {passed} passed, {unsupported} unsupported, {} failed", failures.len());
        failed.extend(failures.into_iter().take(5).map(|f| f.to_string()));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
