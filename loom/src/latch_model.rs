//! Events that threads wait for, and the first fault of a queue.

use crate::HOUR;
use crate::queue::latch::{FirstFault, Latch};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

#[test]
fn every_waiter_wakes_and_sees_what_came_before_the_signal() {
    loom::model(|| {
        let shared = Arc::new((Latch::new(), AtomicUsize::new(0)));
        let waiters = [0, 1].map(|_| {
            let shared = shared.clone();
            thread::spawn(move || {
                assert!(shared.0.wait(HOUR));
                assert_eq!(shared.1.load(Ordering::Relaxed), 1);
            })
        });
        shared.1.store(1, Ordering::Relaxed);
        shared.0.signal();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

#[test]
fn whoever_finds_a_latch_reached_sees_what_came_before_the_signal() {
    loom::model(|| {
        let shared = Arc::new((Latch::new(), AtomicUsize::new(0)));
        let signaller = {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.1.store(1, Ordering::Relaxed);
                shared.0.signal();
            })
        };
        if shared.0.is_reached() {
            assert_eq!(shared.1.load(Ordering::Relaxed), 1);
            assert!(shared.0.at().is_some());
        }
        signaller.join().unwrap();
    });
}

#[test]
fn the_first_fault_stays_the_first() {
    loom::model(|| {
        let fault = Arc::new(FirstFault::new());
        let setters = [1, 2].map(|number| {
            let fault = fault.clone();
            thread::spawn(move || fault.set(number))
        });
        let early = fault.get();
        assert!(early.is_some() || !fault.is_present() || fault.get().is_some());
        setters.into_iter().for_each(|setter| setter.join().unwrap());
        let late = fault.get();
        assert!(late.is_some() && (early.is_none() || early == late), "{early:?}, then {late:?}");
    });
}
