//! The team that spins, then parks.

use crate::sync::UnsafeCell;
use crate::team::Team;
use loom::sync::Arc;
use loom::thread;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// One number a task, written without any lock: only the region's beginning and end keep accesses apart.
struct Marks(Vec<UnsafeCell<usize>>);

// SAFETY: what the models check: a task writes its own number only, and readers come after the region.
unsafe impl Sync for Marks {}
// SAFETY: numbers.
unsafe impl Send for Marks {}

impl Marks {
    fn new(tasks: usize) -> Self {
        Self((0..tasks).map(|_| UnsafeCell::new(0)).collect())
    }

    fn add(&self, index: usize) {
        // SAFETY: loom fails the model where another access overlaps.
        self.0[index].with_mut(|mark| unsafe { *mark += 1 });
    }

    fn all(&self) -> Vec<usize> {
        // SAFETY: as above.
        self.0.iter().map(|mark| mark.with(|mark| unsafe { *mark })).collect()
    }
}

#[test]
fn every_task_has_run_once_when_the_region_ends_also_on_a_parked_team() {
    loom::model(|| {
        let team = Team::new(2).unwrap();
        for _ in 0..2 {
            let marks = Marks::new(2);
            team.run(2, &|index| marks.add(index));
            assert_eq!(marks.all(), [1, 1]);
        }
    });
}

#[test]
fn three_threads_share_a_region() {
    loom::model(|| {
        let team = Team::new(3).unwrap();
        let marks = Marks::new(3);
        team.run(3, &|index| marks.add(index));
        assert_eq!(marks.all(), [1, 1, 1]);
    });
}

#[test]
fn two_callers_follow_one_another() {
    loom::model(|| {
        let shared = Arc::new((Team::new(2).unwrap(), Marks::new(2)));
        let run = |shared: &(Team, Marks)| shared.0.run(2, &|index| shared.1.add(index));
        let other = {
            let shared = shared.clone();
            thread::spawn(move || run(&shared))
        };
        run(&shared);
        other.join().unwrap();
        assert_eq!(shared.1.all(), [2, 2]);
    });
}

#[test]
fn a_panic_anywhere_reaches_the_caller_and_the_team_goes_on() {
    loom::model(|| {
        let team = Team::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            team.run(2, &|index| {
                if index == 1 {
                    resume_unwind(Box::new("broken task"));
                }
            });
        }));
        assert!(outcome.is_err());
        let marks = Marks::new(2);
        team.run(2, &|index| marks.add(index));
        assert_eq!(marks.all(), [1, 1]);
    });
}
