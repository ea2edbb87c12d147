//! Where the sequences of a call lie: beside one another, or one behind the other by lengths that only the device knows.

use super::view::View;
use portolan_ops::attention::LensSpec;
use portolan_ops::{OpError, Result};
use smallvec::SmallVec;

/// One sequence.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// Its place in the first dimension of what has tokens, and its first token there.
    batch: usize,
    first: usize,
    /// How many tokens it has.
    pub(super) tokens: usize,
    /// Its place in the first dimension of what has states.
    pub(super) state: usize,
}

impl Span {
    /// The place of its token t.
    #[inline(always)]
    pub(super) fn at(self, t: usize) -> [usize; 2] {
        [self.batch, self.first + t]
    }

    /// The place of head `head` of its token t.
    #[inline(always)]
    pub(super) fn head(self, t: usize, head: usize) -> [usize; 3] {
        [self.batch, self.first + t, head]
    }
}

/// The sequences of a call.
pub(crate) struct Spans {
    /// Number of sequences, and tokens of each where they lie beside one another.
    count: usize,
    tokens: usize,
    /// First token and number of tokens of each sequence where they lie one behind the other.
    packed: Option<SmallVec<[(usize, usize); 8]>>,
}

impl Spans {
    /// `count` sequences of `tokens` each, or those that `lens` gives of `tokens` of all together.
    ///
    /// # Errors
    /// `Data` for a length that is negative or above its bound, and when they add up to more than there is.
    ///
    /// # Safety
    /// The view is readable i32 of as many elements as there are lengths.
    pub(crate) unsafe fn read(
        op: &'static str,
        count: usize,
        tokens: usize,
        lens: Option<(&LensSpec, View)>,
    ) -> Result<Self> {
        let Some((spec, view)) = lens else { return Ok(Self { count, tokens, packed: None }) };
        let data = |what| OpError::Data { op: op.into(), what };
        let mut packed = SmallVec::with_capacity(count);
        let mut first = 0;
        for index in 0..spec.count() {
            // SAFETY: below the number of lengths.
            let len = unsafe { view.int(index) };
            if len < 0 || len as u32 > spec.max() {
                return Err(data(format!("lens[{index}] is {len}, expected 0 to {}", spec.max())));
            }
            let len = len as usize;
            if len > tokens - first {
                let sum = first + len;
                return Err(data(format!("lens up to {index} add up to {sum}, there are {tokens} tokens")));
            }
            packed.push((first, len));
            first += len;
        }
        Ok(Self { count, tokens, packed: Some(packed) })
    }

    /// Number of sequences.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Sequence `index`.
    #[inline(always)]
    pub(super) fn get(&self, index: usize) -> Span {
        match &self.packed {
            None => Span { batch: index, first: 0, tokens: self.tokens, state: index },
            Some(packed) => {
                let (first, tokens) = packed[index];
                Span { batch: 0, first, tokens, state: index }
            }
        }
    }

    /// Tokens of a sequence in the mean, at least one: what a task's work is reckoned by.
    pub(super) fn usual(&self) -> usize {
        match self.packed {
            None => self.tokens.max(1),
            Some(_) => (self.tokens / self.count.max(1)).max(1),
        }
    }

    /// Tokens of the longest sequence.
    pub(super) fn longest(&self) -> usize {
        match &self.packed {
            None => self.tokens,
            Some(packed) => packed.iter().map(|&(_, tokens)| tokens).max().unwrap_or(0),
        }
    }

    /// Tokens of the shortest sequence.
    pub(super) fn shortest(&self) -> usize {
        match &self.packed {
            None => self.tokens,
            Some(packed) => packed.iter().map(|&(_, tokens)| tokens).min().unwrap_or(0),
        }
    }

    /// Writes 0 to the tokens of `out` that no sequence has.
    ///
    /// # Safety
    /// `out` is writable, and has `rows` rows of `n` elements for each token.
    pub(super) unsafe fn clear<const N: usize>(&self, out: &View, rows: usize, n: usize) {
        let Some(packed) = &self.packed else { return };
        let used = packed.last().map_or(0, |&(first, tokens)| first + tokens);
        for token in used..self.tokens {
            for row in 0..rows {
                let mut at = [0, token, row].into_iter();
                // SAFETY: the caller's promise.
                unsafe { out.clear::<N>(core::array::from_fn(|_| at.next().unwrap_or(0)), n) };
            }
        }
    }
}
