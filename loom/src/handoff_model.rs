//! The hand-off between those who submit and the one thread that executes.

use crate::HOUR;
use crate::queue::handoff::Handoff;
use crate::queue::latch::{FirstFault, Latch};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use std::collections::VecDeque;

enum Entry {
    /// Executes: the digit is appended to the log.
    Write(usize),
    Fail,
    Signal,
    /// Signals a latch of its own.
    Late(Arc<Latch>),
    /// Waits for the queue's event, or for another latch that it signals.
    Await(Arc<Queue>, Option<Arc<Latch>>),
}

struct Queue {
    handoff: Handoff<Entry>,
    fault: FirstFault<usize>,
    event: Latch,
    /// Digits in order of execution. Relaxed, so that only the queue's own order makes it visible.
    log: AtomicUsize,
}

impl Queue {
    fn new() -> Arc<Self> {
        let (handoff, fault, event) = (Handoff::new(), FirstFault::new(), Latch::new());
        Arc::new(Self { handoff, fault, event, log: AtomicUsize::new(0) })
    }

    fn execute(&self, entry: Entry) {
        match entry {
            Entry::Write(digit) => {
                // Two accesses: a second executor in between would lose a digit.
                let log = self.log.load(Ordering::Relaxed);
                self.log.store(10 * log + digit, Ordering::Relaxed);
            }
            Entry::Fail => self.fault.set(1),
            Entry::Signal => self.event.signal(),
            Entry::Late(latch) => latch.signal(),
            Entry::Await(queue, latch) => {
                let event = latch.as_deref().unwrap_or(&queue.event);
                if !event.is_reached() {
                    queue.handoff.work_off_here(HOUR, || event.is_reached(), |entry| queue.execute(entry));
                    assert!(event.wait(HOUR));
                }
            }
        }
    }

    /// As a queued stream's thread.
    fn start(queue: &Arc<Self>) -> thread::JoinHandle<()> {
        let queue = queue.clone();
        thread::spawn(move || {
            let mut batch = VecDeque::new();
            while queue.handoff.take(&mut batch) {
                while let Some(entry) = batch.pop_front() {
                    queue.execute(entry);
                    queue.handoff.finish_one();
                }
            }
        })
    }

    fn log(&self) -> usize {
        self.log.load(Ordering::Relaxed)
    }
}

#[test]
fn whoever_waits_sees_everything_executed_in_order() {
    loom::model(|| {
        let queue = Queue::new();
        let worker = Queue::start(&queue);
        queue.handoff.push(Entry::Write(1));
        queue.handoff.push(Entry::Write(2));
        assert!(queue.handoff.wait_for_all(HOUR));
        assert_eq!(queue.log(), 12);
        queue.handoff.stop();
        worker.join().unwrap();
    });
}

#[test]
fn two_submitters_both_see_their_own_work_done() {
    loom::model(|| {
        let queue = Queue::new();
        let worker = Queue::start(&queue);
        let other = {
            let queue = queue.clone();
            thread::spawn(move || {
                queue.handoff.push(Entry::Write(1));
                assert!(queue.handoff.wait_for_all(HOUR));
                assert!([1, 12, 21].contains(&queue.log()));
            })
        };
        queue.handoff.push(Entry::Write(2));
        assert!(queue.handoff.wait_for_all(HOUR));
        assert!([2, 12, 21].contains(&queue.log()));
        other.join().unwrap();
        queue.handoff.stop();
        worker.join().unwrap();
    });
}

#[test]
fn an_idle_queue_has_executed_everything() {
    loom::model(|| {
        let queue = Queue::new();
        let worker = Queue::start(&queue);
        queue.handoff.push(Entry::Write(1));
        if queue.handoff.is_idle() {
            assert_eq!(queue.log(), 1);
        }
        queue.handoff.stop();
        // What was pushed before the stop is executed all the same.
        worker.join().unwrap();
        assert_eq!(queue.log(), 1);
    });
}

#[test]
fn a_fault_is_known_to_whoever_waited_for_it() {
    loom::model(|| {
        let queue = Queue::new();
        let worker = Queue::start(&queue);
        queue.handoff.push(Entry::Fail);
        queue.handoff.push(Entry::Signal);
        // By the event, and by the queue.
        assert!(queue.event.wait(HOUR));
        assert_eq!(queue.fault.get(), Some(1));
        assert!(queue.handoff.wait_for_all(HOUR));
        queue.handoff.stop();
        worker.join().unwrap();
    });
}

#[test]
fn without_a_worker_each_entry_is_executed_once_and_alone() {
    loom::model(|| {
        let queue = Queue::new();
        let submit = |queue: &Queue, digit| {
            queue.handoff.push(Entry::Write(digit));
            queue.handoff.work_off_here(HOUR, || false, |entry| queue.execute(entry));
            assert!([digit, 12, 21].contains(&queue.log()));
        };
        let other = {
            let queue = queue.clone();
            thread::spawn(move || submit(&queue, 1))
        };
        submit(&queue, 2);
        other.join().unwrap();
        assert!([12, 21].contains(&queue.log()));
        assert!(queue.handoff.is_idle());
    });
}

#[test]
fn queues_without_a_worker_that_wait_for_each_other_end() {
    loom::model(|| {
        // `a`: 1, its event. `b`: waits for that, its event. Then `a` waits for the event of `b`, and writes 2; and `b`
        // waits for a later event of `a`.
        let [a, b] = [(); 2].map(|()| Queue::new());
        let later = Arc::new(Latch::new());
        let work = |mine: &Arc<Queue>| {
            mine.handoff.work_off_here(HOUR, || false, |entry| mine.execute(entry));
        };
        a.handoff.push(Entry::Signal);
        b.handoff.push(Entry::Await(a.clone(), None));
        b.handoff.push(Entry::Signal);
        a.handoff.push(Entry::Await(b.clone(), None));
        a.handoff.push(Entry::Late(later.clone()));
        b.handoff.push(Entry::Await(a.clone(), Some(later)));
        let other = {
            let b = b.clone();
            thread::spawn(move || work(&b))
        };
        work(&a);
        other.join().unwrap();
        assert!(a.handoff.is_idle() && b.handoff.is_idle());
    });
}
