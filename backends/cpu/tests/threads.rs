//! How many threads a stream takes.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_conformance::{Subject, check_operator, check_round_trips};
use portolan_core::{OpKind, Registry, Stream, StreamOptions};
use portolan_cpu::{CpuBackend, CpuOptions, Executor};
use std::{fs, thread, time::Duration};

/// How often each worker of the only device of this process went to sleep so far.
fn sleeps() -> Vec<(String, String)> {
    let mut sleeps = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let name = fs::read_to_string(task.join("comm")).unwrap();
        if name.starts_with("portolan-cpu-") {
            let status = fs::read_to_string(task.join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
            sleeps.push((name, line.to_string()));
        }
    }
    sleeps.sort();
    sleeps
}

/// The same, once nobody works any more.
fn sleeps_at_rest() -> Vec<(String, String)> {
    let mut before = sleeps();
    loop {
        thread::sleep(Duration::from_millis(50));
        let now = sleeps();
        if now == before {
            return now;
        }
        before = now;
    }
}

fn run(stream: &Stream, kinds: &[OpKind]) {
    for &kind in kinds {
        let outcome = check_operator(&Subject { stream, slack: 1.0 }, kind, 5).unwrap();
        assert!(outcome.failures.is_empty(), "{}", outcome.failures[0]);
    }
}

#[test]
fn a_stream_of_one_thread_leaves_the_team_alone() {
    let options = CpuOptions { executor: Executor::Inline, threads: Some(2), ..CpuOptions::default() };
    let device = Registry::new().with(CpuBackend::new(options).unwrap()).open("cpu:0").unwrap();
    let stream = |threads| device.stream(StreamOptions { threads, ..StreamOptions::default() }).unwrap();
    let before = sleeps_at_rest();
    assert_eq!(before.len(), 1, "the team is the caller and one worker");
    run(&stream(Some(1)), OpKind::ALL);
    assert!(check_round_trips(&stream(Some(1)), 5).unwrap().failures.is_empty());
    assert_eq!(sleeps_at_rest(), before, "a worker was woken");
    run(&stream(None), OpKind::ALL);
    assert_ne!(sleeps_at_rest(), before, "what is watched does not show who works");
}
