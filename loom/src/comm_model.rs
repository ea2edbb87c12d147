//! Where ranks meet, and the gate before memory that they read of each other.

use crate::HOUR;
use crate::comm::gate::Gate;
use crate::sync::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use portolan_core::meeting::{At, Hub, Stop};

const AT: At = At { op: "sum", seq: 7 };

/// Two ranks with a number each, written without any lock: only meetings and gates keep accesses apart.
struct Pair {
    hub: Hub<usize>,
    gates: [Gate; 2],
    numbers: [UnsafeCell<usize>; 2],
}

// SAFETY: what the models check.
unsafe impl Sync for Pair {}
// SAFETY: numbers.
unsafe impl Send for Pair {}

impl Pair {
    fn new() -> Arc<Self> {
        let numbers = [UnsafeCell::new(0), UnsafeCell::new(0)];
        Arc::new(Self { hub: Hub::new(2), gates: [Gate::new(), Gate::new()], numbers })
    }

    fn write(&self, rank: usize, value: usize) {
        // SAFETY: loom fails the model where another access overlaps.
        self.numbers[rank].with_mut(|number| unsafe { *number = value });
    }

    fn read(&self, rank: usize) -> usize {
        // SAFETY: as above.
        self.numbers[rank].with(|number| unsafe { *number })
    }

    /// As a collective: what the other rank had before, or why not. The number is this rank's own again afterwards.
    fn fetch(&self, rank: usize, give_up: bool) -> Result<usize, Stop> {
        let peer = 1 - rank;
        self.write(rank, 10 + rank);
        self.gates[rank].open();
        let moved = self.hub.meet(rank, AT, rank, HOUR).and_then(|posts| {
            assert_eq!(posts, [0, 1]);
            if give_up {
                return Err(Stop { rank, at: Some(AT), what: "gave up".into() });
            }
            self.gates[peer].pass(|| self.read(peer)).ok_or_else(|| self.hub.stopped().unwrap())
        });
        let outcome = moved.and_then(|value| self.hub.fence(rank, AT, HOUR).map(|()| value));
        if let Err(stop) = &outcome {
            self.hub.stop(stop.clone());
        }
        self.gates[rank].close();
        self.write(rank, 99);
        outcome
    }
}

fn both<T: Send + 'static>(
    pair: &Arc<Pair>,
    first: impl FnOnce(&Pair) -> T,
    second: impl FnOnce(&Pair) -> T + Send + 'static,
) -> [T; 2] {
    let other = {
        let pair = pair.clone();
        thread::spawn(move || second(&pair))
    };
    let first = first(pair);
    [first, other.join().unwrap()]
}

#[test]
fn ranks_read_what_was_written_before_the_meeting_and_reuse_it_behind_the_fence() {
    loom::model(|| {
        let pair = Pair::new();
        let values = both(&pair, |pair| pair.fetch(0, false), |pair| pair.fetch(1, false));
        assert_eq!(values, [Ok(11), Ok(10)]);
    });
}

#[test]
fn a_rank_that_gives_up_half_way_takes_its_memory_back_when_nobody_reads_it() {
    loom::model(|| {
        let pair = Pair::new();
        let outcomes = both(&pair, |pair| pair.fetch(0, false), |pair| pair.fetch(1, true));
        for outcome in outcomes {
            assert_eq!(outcome, Err(Stop { rank: 1, at: Some(AT), what: "gave up".into() }));
        }
    });
}

#[test]
fn whoever_waits_is_told_of_a_rank_that_leaves() {
    loom::model(|| {
        let pair = Pair::new();
        let leave = |pair: &Pair| {
            pair.hub.leave(1);
            Err(Stop { rank: 1, at: Some(AT), what: "has left the group".into() })
        };
        let [waiter, wanted] = both(&pair, |pair| pair.fetch(0, false), leave);
        assert_eq!(waiter, wanted);
    });
}

#[test]
fn a_rank_that_leaves_when_all_is_done_concerns_nobody() {
    loom::model(|| {
        let pair = Pair::new();
        let fetch_and_leave = |rank: usize| {
            move |pair: &Pair| {
                let outcome = pair.fetch(rank, false);
                pair.hub.leave(rank);
                outcome
            }
        };
        assert_eq!(both(&pair, fetch_and_leave(0), fetch_and_leave(1)), [Ok(11), Ok(10)]);
    });
}

#[test]
fn a_meeting_is_passed_by_all_or_by_none() {
    loom::model(|| {
        let pair = Pair::new();
        let stopper = {
            let pair = pair.clone();
            thread::spawn(move || pair.hub.stop(Stop { rank: 0, at: None, what: "enough".into() }))
        };
        let meet = |rank: usize| move |pair: &Pair| pair.hub.meet(rank, AT, rank, HOUR);
        let [first, second] = both(&pair, meet(0), meet(1));
        stopper.join().unwrap();
        assert_eq!(first, second);
        if let Err(stop) = first {
            assert_eq!((stop.at, stop.what.as_str()), (Some(AT), "enough"));
        }
        assert!(pair.hub.stopped().is_some());
    });
}
