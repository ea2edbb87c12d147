//! Faults: they poison what depends on them, name their first cause, and nothing else.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{Binary, Copy, Embedding};
use portolan_core::{Stream, StreamOptions, Weight};
use portolan_cpu::Executor;
use portolan_ops::{Access, ErrorKind, OpError, Result, Shape};
use rig::{custom, device, down, every_executor, f32s, launch_fault, queued, sleeper, slow_copy, stream, up};
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
fn every_way_of_waiting_reports_the_fault_with_operator_number_and_cause() {
    for device in every_executor() {
        let s = stream(&device);
        let before = s.record().unwrap();
        let out = launch_fault(&s).unwrap();
        let event = s.record().unwrap();
        // The third submission: after two uploads.
        assert_eq!(assert_poisoned(s.synchronize(), &s), 3);
        assert_eq!(assert_poisoned(event.synchronize(), &s), 3);
        assert_poisoned(event.is_complete(), &s);
        let mut copy = stream(&device).empty(out.spec()).unwrap();
        assert_poisoned(s.run(Copy::new(&out, &mut copy).unwrap()), &s);
        assert_poisoned(s.upload(&[1f32], &Shape::new(&[1]).unwrap()).map(|_| ()), &s);
        assert_poisoned(s.download::<f32>(&out).map(|_| ()), &s);
        before.synchronize().unwrap();
        assert!(before.is_complete().unwrap());
    }
}

#[test]
fn a_pending_download_reports_the_fault_that_its_data_depends_on() {
    for device in every_executor() {
        let s = stream(&device);
        let x = up(&s, &[5.0; 3]);
        let good = s.download::<f32>(&x).unwrap();
        let out = launch_fault(&s).unwrap();
        let bad = s.download::<f32>(&out).and_then(portolan_core::Pending::wait);
        assert_poisoned(bad, &s);
        assert_eq!(good.wait().unwrap(), [5.0; 3]);
    }
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
fn a_stream_that_waits_for_the_fault_is_poisoned_and_one_that_waited_before_is_not() {
    for device in every_executor() {
        let (s, before, after) = (stream(&device), stream(&device), stream(&device));
        let (x, y) = (up(&before, &[1.0]), up(&after, &[2.0]));
        up(&s, &[0.0]);
        before.wait(&s.record().unwrap()).unwrap();
        launch_fault(&s).unwrap();
        let event = s.record().unwrap();
        s.synchronize().unwrap_err();
        let unhurt = after.record().unwrap();
        after.wait(&event).unwrap();
        assert_poisoned(after.synchronize(), &s);
        assert_poisoned(after.run(sleeper(&y, Duration::ZERO)), &s);
        assert_eq!(down(&before, &x), [1.0]);
        // What the poisoned stream had done before it waited is as good as ever.
        unhurt.synchronize().unwrap();
        assert_eq!(down(&before, &y), [2.0]);
    }
}

#[test]
fn poison_travels_through_a_stream_in_between() {
    for device in every_executor() {
        let (a, b, c) = (stream(&device), stream(&device), stream(&device));
        let spare = up(&b, &[0.0]);
        launch_fault(&a).unwrap();
        b.wait(&a.record().unwrap()).unwrap();
        c.wait(&b.record().unwrap()).unwrap();
        a.synchronize().unwrap_err();
        assert_poisoned(c.synchronize(), &a);
        drop(b);
        let d = stream(&device);
        assert_eq!(down(&d, &spare), [0.0]);
    }
}

#[test]
fn readers_of_what_a_poisoned_stream_wrote_last_are_tainted() {
    for device in every_executor() {
        let (s, reader) = (stream(&device), stream(&device));
        let out = launch_fault(&s).unwrap();
        s.synchronize().unwrap_err();
        assert_poisoned(reader.download::<f32>(&out).and_then(portolan_core::Pending::wait), &s);
        // Also when the stream itself is gone.
        let id = s.id();
        drop(s);
        let late = stream(&device);
        let error = late.download::<f32>(&out).and_then(portolan_core::Pending::wait).unwrap_err();
        assert!(matches!(error, OpError::Poisoned { stream, .. } if stream == id), "{error}");
    }
}

#[test]
fn what_was_written_before_the_fault_stays_good_and_so_does_a_new_stream() {
    for device in every_executor() {
        let s = stream(&device);
        let weight = up(&s, &[4.0; 3]);
        launch_fault(&s).unwrap();
        s.synchronize().unwrap_err();
        let recovered = stream(&device);
        let mut out = recovered.empty(&f32s(3)).unwrap();
        recovered.run(Binary::add(&weight, &weight, &mut out).unwrap()).unwrap();
        assert_eq!(down(&recovered, &out), [8.0; 3]);
    }
}

#[test]
fn an_operator_that_was_refused_taints_nothing() {
    for device in every_executor() {
        let (s, other) = (poisoned_stream(&device), stream(&device));
        let x = up(&other, &[4.0; 3]);
        assert_poisoned(s.write(&x, &[0f32; 3]), &s);
        assert_poisoned(s.run(Binary::add(&x, &x, &mut x.clone()).unwrap()), &s);
        assert_eq!(down(&other, &x), [4.0; 3]);
        other.write(&x, &[1f32; 3]).unwrap();
        assert_eq!(down(&other, &x), [1.0; 3]);
    }
}

#[test]
fn independent_streams_go_on() {
    for device in every_executor() {
        let (s, other) = (stream(&device), stream(&device));
        let x = up(&other, &[4.0; 3]);
        launch_fault(&s).unwrap();
        s.synchronize().unwrap_err();
        for _ in 0..20 {
            other.run(Binary::add(&x, &x, &mut x.clone()).unwrap()).unwrap();
        }
        other.synchronize().unwrap();
    }
}

#[test]
fn a_blocking_stream_names_the_operator_at_its_own_run() {
    for device in every_executor() {
        let s = device.stream(StreamOptions { blocking: true, ..StreamOptions::default() }).unwrap();
        let error = launch_fault(&s).unwrap_err();
        assert!(matches!(&error, OpError::Poisoned { op, seq: 3, .. } if op == "gather"), "{error}");
    }
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

#[test]
fn errors_of_a_fault_are_of_a_kind_programs_can_tell() {
    let device = queued();
    let s = poisoned_stream(&device);
    let kind = s.synchronize().unwrap_err().kind();
    assert!(kind != ErrorKind::InvalidArgument && kind != ErrorKind::Unsupported, "{kind:?}");
}
