//! Reads and checks what only the device knows: lengths and block tables.
//!
//! Everything a kernel takes on trust afterwards is established here; violations are data faults.

use super::view::View;
use core::ops::Range;
use portolan_ops::{OpError, Result};

/// One sequence of a ragged batch that has tokens in this call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    /// Its index in the batch.
    pub(super) index: usize,
    /// Its first row in q.
    pub(super) token: usize,
    pub(super) q_len: usize,
    pub(super) kv_len: usize,
}

/// Lengths of a batch on the device, and their bounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    pub(super) q: View<1>,
    pub(super) kv: View<1>,
    pub(super) batch: usize,
    pub(super) max: [u32; 2],
    pub(super) tokens: usize,
}

/// Pages of each sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockTable {
    pub(super) pages: View<2>,
    pub(super) page_size: usize,
    pub(super) num_pages: usize,
}

fn data(op: &'static str, what: String) -> OpError {
    OpError::Data { op: op.into(), what }
}

impl Lengths {
    /// The sequences with tokens, in order, and the number of tokens they have together.
    ///
    /// # Safety
    /// The views are readable i32 of `batch` elements.
    pub(super) unsafe fn read(&self, op: &'static str) -> Result<(Vec<Sequence>, usize)> {
        let mut sequences = Vec::new();
        let mut token = 0usize;
        for index in 0..self.batch {
            // SAFETY: index < batch.
            let lens = unsafe { [self.q.int([index]), self.kv.int([index])] };
            for ((len, max), name) in lens.into_iter().zip(self.max).zip(["q_lens", "kv_lens"]) {
                if len < 0 || len as u32 > max {
                    return Err(data(op, format!("{name}[{index}] is {len}, expected 0 to {max}")));
                }
            }
            let [q_len, kv_len] = lens.map(|len| len as usize);
            if q_len > self.tokens - token {
                return Err(data(
                    op,
                    format!("q_lens up to {index} add up to {}, q has {} tokens", token + q_len, self.tokens),
                ));
            }
            if q_len > 0 {
                sequences.push(Sequence { index, token, q_len, kv_len });
                token += q_len;
            }
        }
        Ok((sequences, token))
    }
}

impl BlockTable {
    /// Fails unless sequence `index` has a page for each of the positions.
    ///
    /// # Safety
    /// The table is readable i32, `index` is one of its rows, and its rows reach `positions`.
    pub(super) unsafe fn check(&self, op: &'static str, index: usize, positions: Range<usize>) -> Result<()> {
        if positions.is_empty() {
            return Ok(());
        }
        for entry in positions.start / self.page_size..=(positions.end - 1) / self.page_size {
            // SAFETY: the caller's promise.
            let page = unsafe { self.pages.int([index, entry]) };
            if page < 0 || page as usize >= self.num_pages {
                return Err(data(
                    op,
                    format!(
                        "block_table[{index}, {entry}] is {page}, but positions {} to {} need it: expected \
                         0 to {}",
                        positions.start,
                        positions.end - 1,
                        self.num_pages as i64 - 1
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The page and the row in it that hold a position.
    ///
    /// # Safety
    /// [`BlockTable::check`] has passed for this position.
    pub(super) unsafe fn locate(&self, index: usize, position: usize) -> [usize; 2] {
        // SAFETY: the caller's promise.
        let page = unsafe { self.pages.int([index, position / self.page_size]) };
        [page as usize, position % self.page_size]
    }
}
