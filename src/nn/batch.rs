//! The tokens of one forward pass.

use crate::Error;
use core::ops::Range;
use portolan_core::{Lens, Stream, Tensor};
use portolan_ops::{OpError, Shape};

/// The tokens of one forward pass: of every sequence some, one sequence after the other.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids, i32 `[tokens]`.
    pub ids: Tensor,
    /// Their positions, i32 `[tokens]`.
    pub positions: Tensor,
    /// Tokens of each sequence in this pass.
    pub q_lens: Lens,
    /// Tokens of each sequence so far, this pass included.
    pub kv_lens: Lens,
    /// Rows whose logits are wanted, i32; all when `None`.
    pub logit_rows: Option<Tensor>,
}

impl Batch {
    /// Tokens that follow `cached` earlier ones, per sequence; logits of every row.
    ///
    /// # Errors
    /// `Attribute` when ids or positions exceed i32, `OutOfMemory`, `Poisoned`.
    pub fn new(
        stream: &Stream,
        sequences: &[&[u32]],
        cached: &[usize],
        max_len: usize,
    ) -> Result<Self, Error> {
        let wrong = |what: String| Error::from(OpError::shape("batch", what));
        if sequences.len() != cached.len() {
            return Err(wrong(format!("{} sequences and {} cached lengths", sequences.len(), cached.len())));
        }
        let (mut ids, mut positions, mut q_lens, mut kv_lens) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (tokens, &start) in sequences.iter().zip(cached) {
            let end = start.saturating_add(tokens.len());
            if end > max_len || end > i32::MAX as usize {
                return Err(wrong(format!("a sequence of {end} tokens, the cache holds {max_len}")));
            }
            for (i, &token) in tokens.iter().enumerate() {
                ids.push(i32::try_from(token).map_err(|_| wrong(format!("token id {token} is above i32")))?);
                positions.push((start + i) as i32);
            }
            q_lens.push(tokens.len() as u32);
            kv_lens.push(end as u32);
        }
        let shape = Shape::new(&[ids.len()])?;
        let longest = q_lens.iter().copied().max().unwrap_or(0);
        Ok(Self {
            ids: stream.upload(&ids, &shape)?,
            positions: stream.upload(&positions, &shape)?,
            q_lens: Lens::upload(stream, &q_lens, longest)?,
            kv_lens: Lens::upload(stream, &kv_lens, max_len.min(u32::MAX as usize) as u32)?,
            logit_rows: None,
        })
    }

    /// Asks for the logits of each sequence's last token only.
    ///
    /// # Errors
    /// `OutOfMemory`, `Poisoned`; `Shape` when a sequence has no token in this pass.
    pub fn last_rows_only(mut self, stream: &Stream, sequences: &[&[u32]]) -> Result<Self, Error> {
        let mut rows = Vec::new();
        let mut end = 0;
        for tokens in sequences {
            end += tokens.len();
            if tokens.is_empty() {
                return Err(OpError::shape("batch", "a sequence without tokens has no last row").into());
            }
            rows.push((end - 1) as i32);
        }
        self.logit_rows = Some(stream.upload(&rows, &Shape::new(&[rows.len()])?)?);
        Ok(self)
    }

    /// Asks for no logits: the pass only extends the cache.
    ///
    /// # Errors
    /// `OutOfMemory`, `Poisoned`.
    pub fn without_logits(mut self, stream: &Stream) -> Result<Self, Error> {
        self.logit_rows = Some(stream.upload::<i32>(&[], &Shape::new(&[0])?)?);
        Ok(self)
    }

    /// The pass as operators take it that carry a state from token to token.
    ///
    /// # Errors
    /// `Shape` where the lengths that the host knows are of another number of tokens.
    pub fn sequences(&self) -> Result<Sequences, Error> {
        let rows = self.ids.numel();
        let q_lens = self.q_lens.spec("batch", "q_lens")?;
        let kv_lens = self.kv_lens.spec("batch", "kv_lens")?;
        let (count, host) = (q_lens.count(), q_lens.host());
        if let Some(sum) = q_lens.sum().filter(|&sum| sum != rows as u64) {
            let what = format!("{rows} tokens, the lengths that the host knows add up to {sum}");
            return Err(OpError::shape("batch", what).into());
        }
        // Where the host knows nothing, but there are as many tokens as there can be at most, every sequence has its share.
        let each = match host {
            Some(lens) => lens.first().map_or(0, |&len| len as usize),
            None => q_lens.max() as usize,
        };
        let is_even = host.is_none_or(|lens| lens.iter().all(|&len| len as usize == each));
        let (dims, lens) = match is_even && count.checked_mul(each) == Some(rows) {
            true => ([count, each], None),
            false => ([1, rows], Some(self.q_lens.clone())),
        };
        let mut new: Vec<Range<usize>> = Vec::new();
        let lengths = host.into_iter().flat_map(|lens| lens.iter());
        for (at, (tokens, all)) in lengths.zip(kv_lens.host().into_iter().flat_map(|l| l.iter())).enumerate()
        {
            match new.last_mut().filter(|run| run.end == at && tokens == all) {
                Some(run) => run.end += 1,
                None if tokens == all => new.push(at..at + 1),
                None => {}
            }
        }
        Ok(Sequences { dims, lens, count, new })
    }
}

/// The sequences of a pass: as many tokens of each, or one behind the other and their lengths.
#[derive(Clone, Debug)]
pub struct Sequences {
    /// Sequences and the tokens of each, or 1 and the tokens of all.
    dims: [usize; 2],
    lens: Option<Lens>,
    count: usize,
    new: Vec<Range<usize>>,
}

impl Sequences {
    /// Tokens of each sequence, unless all have as many.
    pub fn lens(&self) -> Option<&Lens> {
        self.lens.as_ref()
    }

    /// Runs of neighbouring sequences that have no token from before this pass, as far as the host knows.
    pub fn new_ones(&self) -> &[Range<usize>] {
        &self.new
    }

    /// Whether no sequence has tokens from before this pass.
    pub fn are_new(&self) -> bool {
        self.new.iter().map(Range::len).sum::<usize>() == self.count
    }

    /// What every token has one of, `[tokens, ..]`, as operators take it: a view `[sequences, tokens of each, ..]`, or
    /// `[1, tokens, ..]` with lengths.
    ///
    /// # Errors
    /// `Shape` when x has another number of rows.
    pub fn rows(&self, x: &Tensor) -> Result<Tensor, Error> {
        let [_, tail @ ..] = x.dims() else {
            return Err(OpError::shape("batch", "a tensor without dimensions has no rows").into());
        };
        Ok(x.reshape(&[&self.dims, tail].concat())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_core::{Registry, StreamOptions};

    fn stream() -> Stream {
        let registry: Registry = crate::registry().unwrap();
        registry.open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap()
    }

    #[test]
    fn sequences_of_one_length_are_a_rectangle_and_others_lie_in_a_row() {
        let s = stream();
        let of = |tokens: &[&[u32]], cached: &[usize]| {
            let batch = Batch::new(&s, tokens, cached, 8).unwrap();
            let sequences = batch.sequences().unwrap();
            (sequences.rows(&batch.ids).unwrap(), sequences)
        };
        let (rows, even) = of(&[&[1, 2], &[3, 4], &[5, 6]], &[0, 3, 0]);
        assert_eq!(
            (rows.dims(), even.lens().is_none(), even.new_ones()),
            (&[3, 2][..], true, &[0..1, 2..3][..])
        );
        assert_eq!(s.download::<i32>(&rows).unwrap().wait().unwrap(), [1, 2, 3, 4, 5, 6]);
        let (rows, ragged) = of(&[&[1, 2], &[3], &[], &[]], &[0, 0, 0, 5]);
        let first = std::slice::from_ref(&(0..3));
        assert_eq!((rows.dims(), ragged.new_ones(), ragged.are_new()), (&[1, 3][..], first, false));
        assert_eq!(ragged.lens().unwrap().spec("batch", "lens").unwrap().sum(), Some(3));
        let (rows, none) = of(&[], &[]);
        assert_eq!((rows.dims(), none.are_new()), (&[0, 0][..], true));
        assert!(of(&[&[1], &[2, 3]], &[0, 0]).1.are_new());
    }

    #[test]
    fn lengths_of_the_device_alone_are_taken_as_they_are() {
        let s = stream();
        let tokens: [&[u32]; 2] = [&[1, 2], &[3, 4]];
        let mut batch = Batch::new(&s, &tokens, &[0, 0], 8).unwrap();
        let on_device = |lens: &Lens, max| Lens::new(lens.tensor().clone(), max, None).unwrap();
        batch.kv_lens = on_device(&batch.kv_lens, 8);
        batch.q_lens = on_device(&batch.q_lens, 2);
        // Nothing says that the sequences are new.
        let even = batch.sequences().unwrap();
        assert_eq!((even.dims, even.lens().is_none(), even.are_new()), ([2, 2], true, false));
        batch.q_lens = on_device(&batch.q_lens, 3);
        let ragged = batch.sequences().unwrap();
        assert_eq!((ragged.dims, ragged.lens().is_some()), ([1, 4], true));
        batch.q_lens = Lens::upload(&s, &[2, 1], 2).unwrap();
        assert!(batch.sequences().unwrap_err().to_string().contains("4 tokens, the lengths"));
    }
}
