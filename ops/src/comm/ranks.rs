//! One rank among the ranks of its group, and how elements are shared out among them.

use crate::{OpError, Result};
use core::ops::Range;

/// A rank and the number of ranks it is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ranks {
    rank: u32,
    world_size: u32,
}

impl Ranks {
    /// Rank `rank` of `world_size`.
    ///
    /// # Errors
    /// `Attribute` for an empty group, or a rank that is not below its size.
    pub fn new(rank: u32, world_size: u32) -> Result<Self> {
        if world_size == 0 {
            return Err(OpError::attribute("communicator", "world_size", "is 0, expected at least 1"));
        }
        if rank >= world_size {
            let what = format!("is {rank}, expected less than the {world_size} ranks of the group");
            return Err(OpError::attribute("communicator", "rank", what));
        }
        Ok(Self { rank, world_size })
    }

    /// This rank.
    pub fn rank(self) -> u32 {
        self.rank
    }

    /// Ranks in the group.
    pub fn world_size(self) -> u32 {
        self.world_size
    }

    /// This rank, to index with.
    pub fn index(self) -> usize {
        self.rank as usize
    }

    /// Ranks in the group, to count with.
    pub fn count(self) -> usize {
        self.world_size as usize
    }

    /// The ranks that are not this one.
    pub fn others(self) -> u64 {
        u64::from(self.world_size - 1)
    }

    /// Fails with `Attribute` unless `peer` is a rank of the group.
    pub(crate) fn expect_peer(self, op: &'static str, arg: &'static str, peer: u32) -> Result<()> {
        match peer < self.world_size {
            true => Ok(()),
            false => {
                let what = format!("is rank {peer}, expected less than the {} of the group", self.world_size);
                Err(OpError::attribute(op, arg, what))
            }
        }
    }

    /// The elements out of `numel` that rank `rank` reduces in an all_reduce: as equal as can be, in rank order.
    pub fn share(self, numel: usize, rank: usize) -> Range<usize> {
        let (each, more) = (numel / self.count(), numel % self.count());
        let start = rank * each + rank.min(more);
        start..start + each + usize::from(rank < more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_nearly_equal_and_cover_everything_once() {
        for world in 1..9 {
            let ranks = Ranks::new(0, world).unwrap();
            for numel in [0, 1, 2, 7, 8, 9, 1000, usize::MAX] {
                let mut next = 0;
                for rank in 0..world as usize {
                    let share = ranks.share(numel, rank);
                    assert_eq!(share.start, next);
                    assert!(share.len() - numel / world as usize <= 1);
                    next = share.end;
                }
                assert_eq!(next, numel);
            }
        }
    }

    #[test]
    fn a_rank_lies_in_its_group() {
        assert!(Ranks::new(0, 0).is_err() && Ranks::new(3, 3).is_err());
        let ranks = Ranks::new(2, 3).unwrap();
        assert_eq!((ranks.rank(), ranks.world_size(), ranks.others()), (2, 3, 2));
    }
}
