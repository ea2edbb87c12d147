//! Order between streams that only a kernel of the test's own can see; the rest is in conformance.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_ops::Access;
use rig::{custom, down, queued, racing, slow_copy, stream, up};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const LATE: Duration = Duration::from_millis(15);

#[test]
fn work_on_unrelated_tensors_is_not_ordered() {
    let device = queued();
    let (a, b) = (stream(&device), stream(&device));
    let (x, y) = (up(&a, &[7.0; 4]), up(&a, &[0.0; 4]));
    let other = up(&b, &[3.0; 4]);
    a.synchronize().unwrap();
    a.run(slow_copy(&x, &y, Duration::from_millis(300))).unwrap();
    let start = std::time::Instant::now();
    assert_eq!(down(&b, &other), [3.0; 4]);
    // Reading what the busy stream reads is no reason to wait either.
    assert_eq!(down(&b, &x), [7.0; 4]);
    assert!(start.elapsed() < Duration::from_millis(250), "{:?}", start.elapsed());
}

/// A kernel that counts, and one that notes the count it sees: order without any shared operand.
#[test]
fn an_explicit_event_orders_work_that_shares_no_operand() {
    for (executor, device) in racing(4) {
        let (a, b) = (stream(&device), stream(&device));
        let (x, y) = (up(&a, &[0.0]), up(&b, &[0.0]));
        let count = Arc::new(AtomicUsize::new(0));
        let counting = count.clone();
        a.run(custom("count", vec![(x, Access::ReadWrite)], move |_| {
            std::thread::sleep(LATE);
            counting.store(1, Ordering::SeqCst);
            Ok(())
        }))
        .unwrap();
        b.wait(&a.record().unwrap()).unwrap();
        b.run(custom("note", vec![(y.clone(), Access::ReadWrite)], move |operands| {
            operands[0].write::<f32>()?[0] = count.load(Ordering::SeqCst) as f32;
            Ok(())
        }))
        .unwrap();
        assert_eq!(down(&b, &y), [1.0], "{executor:?}");
    }
}

#[test]
fn events_measure_the_time_between_them_on_one_stream() {
    let device = queued();
    let (a, b) = (stream(&device), stream(&device));
    let (x, y) = (up(&a, &[7.0; 4]), up(&a, &[0.0; 4]));
    let start = a.record().unwrap();
    a.run(slow_copy(&x, &y, LATE)).unwrap();
    let end = a.record().unwrap();
    end.synchronize().unwrap();
    assert!(end.is_complete().unwrap());
    assert!(end.elapsed_since(&start).unwrap() >= LATE);
    assert!(b.record().unwrap().elapsed_since(&start).is_err());
}
