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

    /// Neighbouring sequences of equally many tokens in this pass, all new or all not: what an operator that takes
    /// sequences of one length runs at a time.
    ///
    /// # Errors
    /// `Shape` where lengths that the host does not know may differ, or there are more tokens than sequences have.
    pub fn runs(&self) -> Result<Vec<Run>, Error> {
        let rows = self.ids.numel();
        let q_lens = self.q_lens.spec("batch", "q_lens")?;
        let kv_lens = self.kv_lens.spec("batch", "kv_lens")?;
        let lens: Vec<usize> = match q_lens.host() {
            Some(lens) => lens.iter().map(|&len| len as usize).collect(),
            // As many tokens as there can be at most: every sequence has its share.
            None => vec![q_lens.max() as usize; q_lens.count()],
        };
        if lens.iter().sum::<usize>() != rows {
            let what = format!("{rows} tokens, the lengths that the host knows add up to another number");
            return Err(OpError::shape("batch", what).into());
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut row = 0;
        for (sequence, &tokens) in lens.iter().enumerate() {
            let is_new = kv_lens.host().is_some_and(|lens| lens[sequence] as usize == tokens);
            match runs.last_mut().filter(|run| run.tokens == tokens && run.is_new == is_new) {
                Some(run) => run.sequences.end += 1,
                None => runs.push(Run { sequences: sequence..sequence + 1, first_row: row, tokens, is_new }),
            }
            row += tokens;
        }
        Ok(runs)
    }
}

/// Neighbouring sequences of a pass that have equally many tokens in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    sequences: Range<usize>,
    first_row: usize,
    tokens: usize,
    is_new: bool,
}

impl Run {
    /// Whether no sequence has tokens from before this pass.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The run's part of `x [tokens, ..]`: a view `[sequences, tokens, ..]`.
    ///
    /// # Errors
    /// `Shape` when x has fewer rows.
    pub fn rows(&self, x: &Tensor) -> Result<Tensor, Error> {
        let rows = x.narrow(0, self.first_row, self.sequences.len() * self.tokens)?;
        let dims = [&[self.sequences.len(), self.tokens], &x.dims()[1..]].concat();
        Ok(rows.reshape(&dims)?)
    }

    /// The run's part of what every sequence has one of.
    ///
    /// # Errors
    /// `Shape` when there are fewer.
    pub fn sequences(&self, x: &Tensor) -> Result<Tensor, Error> {
        Ok(x.narrow(0, self.sequences.start, self.sequences.len())?)
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
    fn runs_are_of_one_length_and_of_one_age() {
        let s = stream();
        let tokens: [&[u32]; 6] = [&[1, 2], &[3, 4], &[5, 6], &[], &[7], &[8]];
        let batch = Batch::new(&s, &tokens, &[0, 0, 3, 0, 5, 2], 8).unwrap();
        let run = |sequences, first_row, tokens, is_new| Run { sequences, first_row, tokens, is_new };
        let want =
            [run(0..2, 0, 2, true), run(2..3, 4, 2, false), run(3..4, 6, 0, true), run(4..6, 6, 1, false)];
        assert_eq!(batch.runs().unwrap(), want);
        let rows = want[3].rows(&batch.ids).unwrap();
        assert_eq!(rows.dims(), [2, 1]);
        assert_eq!(s.download::<i32>(&rows).unwrap().wait().unwrap(), [7, 8]);
    }

    #[test]
    fn lengths_of_the_device_alone_are_equal_or_refused() {
        let s = stream();
        let tokens: [&[u32]; 2] = [&[1, 2], &[3, 4]];
        let mut batch = Batch::new(&s, &tokens, &[0, 0], 8).unwrap();
        let on_device = |lens: &Lens, max| Lens::new(lens.tensor().clone(), max, None).unwrap();
        batch.kv_lens = on_device(&batch.kv_lens, 8);
        batch.q_lens = on_device(&batch.q_lens, 2);
        // Nothing says that the sequences are new.
        let want = Run { sequences: 0..2, first_row: 0, tokens: 2, is_new: false };
        assert_eq!(batch.runs().unwrap(), [want]);
        batch.q_lens = on_device(&batch.q_lens, 3);
        assert!(batch.runs().unwrap_err().to_string().contains("4 tokens"));
    }
}
