//! Faults that only kernels of the test's own can make: panics, errors, slowness; the rest is in conformance.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::Embedding;
use portolan_core::{Stream, StreamOptions, Weight};
use portolan_cpu::Executor;
use portolan_ops::{Access, OpError, Result, Shape};
use rig::{custom, device, down, every_executor, launch_fault, queued, sleeper, slow_copy, stream, up};
use std::time::{Duration, Instant};

/// The first cause, which must be the gather of `origin`.
fn assert_poisoned<T: std::fmt::Debug>(result: Result<T>, origin: &Stream) -> u64 {
    match result.unwrap_err() {
        OpError::Poisoned { stream, op, seq, source } => {
            assert_eq!((stream, op.as_ref()), (origin.id(), "gather"), "{source}");
            assert!(matches!(*source, OpError::Data { .. }), "{source}");
            assert!(source.to_string().contains('9'), "names the index: {source}");
            seq
        }
        other => panic!("not poisoned: {other}"),
    }
}

/// A stream that has failed, and knows it.
fn poisoned_stream(device: &portolan_core::Device) -> Stream {
    let s = stream(device);
    launch_fault(&s).unwrap();
    s.synchronize().unwrap_err();
    s
}

#[test]
fn later_runs_fail_fast_and_name_the_first_cause() {
    let device = queued();
    let s = poisoned_stream(&device);
    let other = stream(&device);
    let ids = other.upload(&[77i32], &Shape::new(&[1]).unwrap()).unwrap();
    let table = up(&other, &[1.0; 4]).reshape(&[2, 2]).unwrap();
    let weight = Weight::Dense(table);
    let mut out =
        other.empty(&portolan_ops::TensorSpec::of(portolan_ops::DType::F32, &[1, 2]).unwrap()).unwrap();
    for _ in 0..3 {
        let start = Instant::now();
        assert_eq!(assert_poisoned(s.run(Embedding::new(&ids, &weight, &mut out).unwrap()), &s), 3);
        assert!(start.elapsed() < Duration::from_millis(200));
    }
    assert_eq!(s.synchronize().unwrap_err().kind(), s.run(sleeper(&out, Duration::ZERO)).unwrap_err().kind());
}

#[test]
fn an_embedding_of_a_token_beyond_the_table_is_a_fault() {
    let device = queued();
    let s = stream(&device);
    let ids = s.upload(&[1i32, 77], &Shape::new(&[2]).unwrap()).unwrap();
    let weight = Weight::Dense(up(&s, &[1.0; 4]).reshape(&[2, 2]).unwrap());
    portolan_core::ops::embedding(&s, &ids, &weight, portolan_ops::DType::F32).unwrap();
    let error = s.synchronize().unwrap_err();
    assert!(matches!(&error, OpError::Poisoned { op, .. } if op == "embedding"), "{error}");
    assert!(error.to_string().contains("77"), "{error}");
}

#[test]
fn a_kernel_that_panics_or_fails_is_an_error_of_its_stream() {
    for device in every_executor() {
        for panics in [true, false] {
            let s = stream(&device);
            let x = up(&s, &[1.0]);
            let operands = vec![(x.clone(), Access::ReadWrite)];
            let result = s
                .run(custom("rude", operands, move |_| match panics {
                    true => std::panic::resume_unwind(Box::new("no manners")),
                    false => Err(OpError::internal("rude", "no manners")),
                }))
                .and_then(|()| s.synchronize());
            let error = result.unwrap_err();
            assert!(matches!(&error, OpError::Poisoned { op, .. } if op == "rude"), "{error}");
            assert!(error.to_string().contains("no manners"), "{error}");
            let next = stream(&device);
            assert_eq!(down(&next, &up(&next, &[2.0])), [2.0]);
        }
    }
}

#[test]
fn a_kernel_slower_than_the_timeout_is_reported_in_bounded_time_and_dropping_does_not_hang() {
    let device = queued();
    let timeout = Duration::from_millis(40);
    let s = device.stream(StreamOptions { timeout, ..StreamOptions::default() }).unwrap();
    let x = up(&s, &[1.0]);
    let start = Instant::now();
    s.run(sleeper(&x, Duration::from_millis(1500))).unwrap();
    let event = s.record().unwrap();
    let pending = s.download::<f32>(&x).unwrap();
    for error in [s.synchronize().unwrap_err(), event.synchronize().unwrap_err(), pending.wait().unwrap_err()]
    {
        assert!(matches!(error, OpError::Timeout { after, .. } if after == timeout), "{error}");
        assert_eq!(error.kind(), OpError::Timeout { what: String::new(), after: timeout }.kind());
    }
    // Another stream's wait for it is bounded by that stream's own timeout, and a fault there.
    let waiter = device.stream(StreamOptions { timeout, ..StreamOptions::default() }).unwrap();
    waiter.wait(&s.record().unwrap()).unwrap();
    std::thread::sleep(2 * timeout);
    let error = waiter.synchronize().unwrap_err();
    assert!(matches!(&error, OpError::Poisoned { op, .. } if op == "wait"), "{error}");
    drop((event, x, s, waiter, device));
    assert!(start.elapsed() < Duration::from_millis(1400), "{:?}", start.elapsed());
}

#[test]
fn the_longest_timeout_there_is_is_no_timeout() {
    for executor in [Executor::Inline, Executor::Queued] {
        let device = device(executor);
        let s = device.stream(StreamOptions { timeout: Duration::MAX, ..StreamOptions::default() }).unwrap();
        let x = up(&s, &[1.0]);
        s.run(slow_copy(&x, &up(&s, &[0.0]), Duration::from_millis(5))).unwrap();
        s.synchronize().unwrap();
        s.record().unwrap().synchronize().unwrap();
    }
}
