//! The groups of one process that ranks are joining or have joined, by identity: for backends whose ranks are threads.

use crate::comm::CommId;
use crate::meeting::{At, Stop};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, lock};
use portolan_ops::Result;
use portolan_ops::comm::{Ranks, Signature};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Weak};

/// What the ranks of one group share.
pub trait Group {
    /// For so many ranks, none of which has come yet.
    fn new(world_size: usize) -> Self;

    /// Ends the group, unless it has ended already.
    fn stop(&self, stop: Stop);
}

struct Open<G> {
    group: Weak<G>,
    taken: Vec<bool>,
}

/// The groups of one backend. A group is forgotten when its last rank lets go of it.
pub struct Groups<G> {
    open: Mutex<HashMap<CommId, Open<G>>>,
    /// Identities given so far.
    numbers: AtomicU64,
}

impl<G> Default for Groups<G> {
    fn default() -> Self {
        Self { open: Mutex::new(HashMap::new()), numbers: AtomicU64::new(0) }
    }
}

impl<G: Group> Groups<G> {
    /// A new identity: no two of this process are alike, and hardly any of two processes.
    pub fn new_id(&self) -> CommId {
        // A number for this backend, and keys that the standard library draws at random for this process.
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let half = |salt: u64| {
            let mut hasher = RandomState::new().build_hasher();
            hasher.write_u64(number ^ salt);
            hasher.finish().to_le_bytes()
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&half(0));
        id[8..].copy_from_slice(&half(1));
        CommId(id)
    }

    /// The group of this identity, which the first rank makes.
    ///
    /// # Errors
    /// `Collective` where the ranks differ about the size of the group, which ends it, or one has joined before.
    pub fn enter(&self, ranks: Ranks, id: CommId, at: At) -> Result<Arc<G>> {
        let refused = |what: String| Stop { rank: ranks.index(), at: None, what }.error(ranks, at);
        let mut open = lock(&self.open);
        open.retain(|_, open| open.group.strong_count() != 0);
        if let Some(known) = open.get_mut(&id)
            && let Some(group) = known.group.upgrade()
        {
            if known.taken.len() != ranks.count() {
                let what = format!("joins a group of {}, others one of {}", ranks.count(), known.taken.len());
                group.stop(Stop { rank: ranks.index(), at: None, what: what.clone() });
                return Err(refused(what));
            }
            if std::mem::replace(&mut known.taken[ranks.index()], true) {
                return Err(refused("has joined this group before; give each group an id of its own".into()));
            }
            return Ok(group);
        }
        let group = Arc::new(G::new(ranks.count()));
        let mut taken = vec![false; ranks.count()];
        taken[ranks.index()] = true;
        open.insert(id, Open { group: Arc::downgrade(&group), taken });
        Ok(group)
    }
}

/// The rank whose call, its number and what it is, does not fit the others', and how.
pub fn disagreement(calls: &[(u64, &Signature)]) -> Option<(usize, String)> {
    let first = calls.first()?.0;
    if let Some((rank, call)) = calls.iter().enumerate().find(|(_, call)| call.0 != first) {
        return Some((rank, format!("is at operator #{}, while rank 0 is at #{first}", call.0)));
    }
    let calls: Vec<&Signature> = calls.iter().map(|call| call.1).collect();
    Signature::disagreement(&calls).map(|(rank, what)| (rank as usize, what))
}

/// The ranks of a group to be split that say `color`, in their new order, given the color and key of each rank.
pub fn of_color(said: &[(Option<u32>, u32)], color: Option<u32>) -> Vec<usize> {
    let mut members: Vec<usize> = (0..said.len()).filter(|&rank| said[rank].0 == color).collect();
    members.sort_by_key(|&rank| said[rank].1);
    members
}
