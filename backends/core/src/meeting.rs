//! Where the threads of a group's ranks meet: each posts something and goes on when all have come as far, or learns
//! who did not and why.
//!
//! All or none pass a meeting: whoever comes after the group was stopped is turned away and not counted. What a rank waits
//! in a meeting and the fences behind it counts together, so that peers which are late and then stuck do not cost it a
//! timeout each time.

use crate::sync::{Condvar, Mutex, MutexGuard, deadline, lock, wait_timeout};
use portolan_ops::OpError;
use portolan_ops::comm::Ranks;
use std::time::{Duration, Instant};

/// What is left to the fences at least of a timeout that the meeting before them has used up: peers that came in time have
/// data to move yet.
const GRACE: Duration = Duration::from_millis(500);

/// An operator of a group: its name, and its number among the group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Its name.
    pub op: &'static str,
    /// Its number.
    pub seq: u64,
}

/// Why a group has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The rank that is to blame.
    pub rank: usize,
    /// Where somebody noticed; unknown until an operator of the group has.
    pub at: Option<At>,
    /// What the rank did, or did not do.
    pub what: String,
}

impl Stop {
    /// The error that a rank of the group reports from `at`, unless it was noticed elsewhere first.
    pub fn error(self, ranks: Ranks, at: At) -> OpError {
        let at = self.at.unwrap_or(at);
        OpError::Collective {
            op: at.op.into(),
            seq: at.seq,
            rank: self.rank as u32,
            world_size: ranks.world_size(),
            what: self.what,
        }
    }
}

struct Rank<P> {
    /// How many meetings it has come to.
    steps: u64,
    posted: Option<P>,
    /// How long it has waited for others since it last posted something, that included.
    waited: Duration,
    gone: bool,
}

struct State<P> {
    ranks: Vec<Rank<P>>,
    stop: Option<Stop>,
}

/// Where the ranks of one group meet.
pub struct Hub<P> {
    state: Mutex<State<P>>,
    /// Somebody came, left or stopped the group.
    moved: Condvar,
}

impl<P: Clone> Hub<P> {
    /// For so many ranks.
    pub fn new(world_size: usize) -> Self {
        let ranks = (0..world_size)
            .map(|_| Rank { steps: 0, posted: None, waited: Duration::ZERO, gone: false })
            .collect();
        Self { state: Mutex::new(State { ranks, stop: None }), moved: Condvar::new() }
    }

    /// Posts something, waits until every rank has come as far, and gives what all have posted, in rank order. The next
    /// step after it must be a [`Hub::fence`], before which nothing is posted anew.
    ///
    /// # Errors
    /// Why the group has ended; ended here when a rank is gone, or this one has waited for `timeout`.
    pub fn meet(&self, rank: usize, at: At, post: P, timeout: Duration) -> Result<Vec<P>, Stop> {
        let state = self.come(rank, at, Some(post), timeout)?;
        Ok(state.ranks.iter().filter_map(|rank| rank.posted.clone()).collect())
    }

    /// Waits until every rank has come as far.
    ///
    /// # Errors
    /// As [`Hub::meet`], what was waited there included.
    pub fn fence(&self, rank: usize, at: At, timeout: Duration) -> Result<(), Stop> {
        self.come(rank, at, None, timeout).map(drop)
    }

    fn come(
        &self,
        me: usize,
        at: At,
        post: Option<P>,
        timeout: Duration,
    ) -> Result<MutexGuard<'_, State<P>>, Stop> {
        let came = Instant::now();
        let mut state = lock(&self.state);
        if state.stop.is_some() {
            return Err(state.stopped_at(at));
        }
        let mine = &mut state.ranks[me];
        mine.steps += 1;
        let steps = mine.steps;
        if post.is_some() {
            (mine.posted, mine.waited) = (post, Duration::ZERO);
        }
        let left = timeout.saturating_add(GRACE).saturating_sub(mine.waited);
        let end = deadline(left.min(timeout));
        if state.missing(steps).is_none() {
            self.moved.notify_all();
        }
        // Whether all have come is asked first: what happens after that is the next operator's concern.
        while let Some(missing) = state.missing(steps) {
            if state.stop.is_some() {
                return Err(state.stopped_at(at));
            }
            let gone = state.ranks.iter().position(|rank| rank.steps < steps && rank.gone);
            let left = end.saturating_duration_since(Instant::now());
            let stop = match gone {
                Some(rank) => Some(Stop { rank, at: None, what: "has left the group".into() }),
                None if left.is_zero() => {
                    let what = format!("did not come within {timeout:?}");
                    Some(Stop { rank: missing, at: None, what })
                }
                None => None,
            };
            if let Some(stop) = stop {
                state.stop = Some(stop);
                self.moved.notify_all();
                return Err(state.stopped_at(at));
            }
            state = wait_timeout(&self.moved, state, left);
        }
        state.ranks[me].waited += came.elapsed();
        Ok(state)
    }

    /// A rank comes no more.
    pub fn leave(&self, rank: usize) {
        lock(&self.state).ranks[rank].gone = true;
        self.moved.notify_all();
    }

    /// Ends the group, unless it has ended already.
    pub fn stop(&self, stop: Stop) {
        lock(&self.state).stop.get_or_insert(stop);
        self.moved.notify_all();
    }

    /// Why the group has ended, if it has.
    pub fn stopped(&self) -> Option<Stop> {
        lock(&self.state).stop.clone()
    }
}

impl<P> State<P> {
    /// The first rank that has not come to meeting `steps`.
    fn missing(&self, steps: u64) -> Option<usize> {
        self.ranks.iter().position(|rank| rank.steps < steps)
    }

    /// Why the group has ended, for an operator that noticed; the first to notice is remembered.
    fn stopped_at(&mut self, at: At) -> Stop {
        let unknown = || Stop { rank: 0, at: None, what: String::new() };
        let stop = self.stop.get_or_insert_with(unknown);
        stop.at.get_or_insert(at);
        stop.clone()
    }
}
