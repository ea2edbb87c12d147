//! How the layers of a model are shared out among the ranks of a group: decided here, for every model (Shoeybi et al.
//! 2019).
//!
//! Every rank holds the whole residual stream, embedding, norms and output. Of the parts between two norms it holds a share
//! of the heads, of the inner columns and of the experts, and computes a part of what they add to the stream; the backbone
//! sums the parts. So few layers but the backbone say anything to other ranks: a Mamba layer, whose steps are made from the
//! channels of all, and a norm of a group of heads that several ranks have.

use crate::Error;
use core::ops::Range;
use portolan_core::{Communicator, ExpertParallel, Stream, Tensor, call};
use portolan_ops::OpError;

/// One rank's share of a model; the default is all of it.
#[derive(Clone, Debug, Default)]
pub struct Layout(Option<Communicator>);

/// The heads of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, out of all.
    pub queries: Range<usize>,
    /// The key and value heads that these look at. More ranks than key heads have copies of them.
    pub keys: Range<usize>,
}

impl Layout {
    /// The share of this rank of the group. All ranks load the same model and run the same batches.
    pub fn of_rank(comm: &Communicator) -> Self {
        Self(Some(comm.clone()))
    }

    /// Ranks.
    pub fn world_size(&self) -> usize {
        self.0.as_ref().map_or(1, |comm| comm.ranks().count())
    }

    fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |comm| comm.ranks().index())
    }

    /// Whether this rank adds what only one may add, such as the bias of a sum.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// This rank's share of `count` things, of which every rank has as many.
    ///
    /// # Errors
    /// `Attribute` where they cannot be shared out equally.
    pub fn share(&self, count: usize, of: &str) -> Result<Range<usize>, Error> {
        let world = self.world_size();
        if !count.is_multiple_of(world) {
            let what =
                format!("are {world}, which cannot share {count} {of} equally; use a divisor of that number");
            return Err(OpError::attribute("model", "ranks", what).into());
        }
        let each = count / world;
        Ok(self.rank() * each..(self.rank() + 1) * each)
    }

    /// This rank's share of `num_heads` query heads, and the key heads they belong to.
    ///
    /// # Errors
    /// As [`share`](Self::share); `Attribute` where a rank would have parts of two groups of heads.
    pub fn heads(&self, num_heads: usize, num_kv_heads: usize) -> Result<Heads, Error> {
        let queries = self.share(num_heads, "heads")?;
        let group = num_heads / num_kv_heads.max(1);
        let keys = queries.start / group.max(1)..queries.end.div_ceil(group.max(1));
        if !queries.len().is_multiple_of(group) && !group.is_multiple_of(queries.len()) {
            let what = format!(
                "are {}: of {num_heads} heads in groups of {group} each would have parts of several groups",
                self.world_size()
            );
            return Err(OpError::attribute("model", "ranks", what).into());
        }
        Ok(Heads { queries, keys })
    }

    /// What finds the experts of this rank; `None` where it has all.
    ///
    /// # Errors
    /// As [`ExpertParallel::new`].
    pub fn experts(&self, stream: &Stream, count: usize) -> Result<Option<ExpertParallel>, Error> {
        let parallel = self.0.as_ref().map(|comm| ExpertParallel::new(stream, comm, count));
        Ok(parallel.transpose()?)
    }

    /// Sums, in place, what the ranks computed.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn sum(&self, stream: &Stream, x: &Tensor) -> Result<(), Error> {
        match &self.0 {
            Some(comm) => Ok(stream.run(call::AllReduce::sum(comm, x, &mut x.clone())?)?),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "meta")]
mod tests {
    use super::*;
    use portolan_core::{CommConfig, StreamOptions};
    use portolan_ops::Determinism;
    use std::time::Duration;

    fn rank(rank: u32, world_size: u32) -> Layout {
        let device = crate::open("meta:0").unwrap();
        let id = device.backend().new_id().unwrap();
        let stream = device.stream(StreamOptions::default()).unwrap();
        let (timeout, determinism) = (Duration::ZERO, Determinism::RunToRun);
        let config = CommConfig { id, rank, world_size, timeout, determinism };
        Layout::of_rank(&Communicator::join(&stream, &config).unwrap())
    }

    #[test]
    fn a_rank_has_whole_groups_of_heads_or_a_part_of_one() {
        let heads = |at, world| rank(at, world).heads(8, 4).unwrap();
        assert_eq!(Layout::default().heads(8, 4).unwrap(), Heads { queries: 0..8, keys: 0..4 });
        assert_eq!(heads(1, 2), Heads { queries: 4..8, keys: 2..4 });
        assert_eq!(heads(3, 4), Heads { queries: 6..8, keys: 3..4 });
        // Two ranks each have a copy of a key head.
        assert_eq!(
            (heads(4, 8), heads(5, 8)),
            (Heads { queries: 4..5, keys: 2..3 }, Heads { queries: 5..6, keys: 2..3 })
        );
        let error = rank(0, 3).heads(8, 4).unwrap_err().to_string();
        assert!(error.contains("3, which cannot share 8 heads"), "{error}");
        let error = rank(0, 2).heads(12, 4).map(|_| ()).and_then(|()| rank(0, 4).heads(24, 4).map(|_| ()));
        assert!(error.is_ok());
        // Groups of three heads, two heads a rank.
        let error = rank(1, 3).heads(6, 2).unwrap_err().to_string();
        assert!(error.contains("parts of several groups"), "{error}");
    }
}
