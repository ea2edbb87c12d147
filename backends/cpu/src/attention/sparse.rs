//! Sparse attention: every token is a sequence of its own, whose keys are the entries of its list.
//!
//! Lists are read, checked and rid of padding first; what then attends is the kernel of `unit`, with addresses from
//! a list in place of consecutive ones. All heads of a token share each entry that is read.

use super::schedule::{attend, clear_rows};
use super::scores::Scores;
use super::sequences::{BlockTable, Lengths, Sequence};
use super::task::{AttentionBases, AttentionTask};
use super::view::View;
use crate::{Isa, Team};
use portolan_ops::attention::{AttentionMask, SparseAttentionSpec};
use portolan_ops::{Contract, DType, OpError, Result, TensorSpec};

/// One call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SparseTask {
    task: AttentionTask,
    indices: View<2>,
    top_k: usize,
    capacity: usize,
}

impl SparseTask {
    /// From the addresses of block table (unused for a contiguous cache), indices, and the others, the cache's being
    /// `bases.k` and that of its scales `bases.k_scale`.
    pub(crate) fn new(
        spec: &SparseAttentionSpec,
        table: *const u8,
        indices: *const u8,
        bases: &AttentionBases,
    ) -> Result<Self> {
        let [outer, inner, width] = [spec.cache().dims()[0], spec.cache().dims()[1], spec.cache().dims()[2]];
        let cache = View::new(&spec.cache().reshape(&[outer, inner, 1, width])?, bases.k.cast_mut());
        let lens = View::new(spec.q_lens().device(), bases.q_lens.cast_mut());
        let max = spec.q_lens().max();
        let task = AttentionTask {
            op: spec.name(),
            q: View::new(spec.q(), bases.q.cast_mut()),
            k: cache,
            v: cache,
            scales: spec.cache_scale().map(|scale| [View::new(scale, bases.k_scale.cast_mut()); 2]),
            shared: true,
            lists: None,
            table: spec.block_table().map(|pages| BlockTable {
                pages: View::new(pages, table.cast_mut()),
                page_size: inner,
                num_pages: outer,
            }),
            // A sequence has as many keys as its tokens list, which no length says.
            lengths: Lengths {
                q: lens,
                kv: lens,
                batch: spec.q_lens().count(),
                max: [max, max],
                tokens: spec.q().dims()[0],
            },
            out: View::new(spec.out(), bases.out),
            lse: spec.lse().map(|lse| View::new(lse, bases.lse)),
            num_heads: spec.q().dims()[1],
            num_kv_heads: 1,
            head_dim: width,
            v_head_dim: spec.out().dims()[2],
            mask: AttentionMask::Full,
            scale: spec.scale(),
            scores: Scores::new(spec.scores(), bases),
        };
        let indices = View::new(spec.indices(), indices.cast_mut());
        Ok(Self { task, indices, top_k: spec.top_k(), capacity: spec.capacity() })
    }

    /// The list of a token of sequence `index` without its padding, behind those of the tokens before.
    ///
    /// # Safety
    /// The views are readable, and the token and the sequence exist.
    unsafe fn read_list(&self, token: usize, index: usize, list: &mut [i32]) -> Result<usize> {
        let mut count = 0;
        for i in 0..self.top_k {
            // SAFETY: the caller's promise.
            let position = unsafe { self.indices.int([token, i]) };
            if position < 0 {
                continue;
            }
            let at = position as usize;
            if at >= self.capacity {
                let what =
                    format!("indices[{token}, {i}] is {position}, a sequence has room for {}", self.capacity);
                return Err(OpError::Data { op: self.task.op.into(), what });
            }
            if let Some(table) = &self.task.table {
                // SAFETY: the position lies within what the table reaches.
                unsafe { table.check(self.task.op, index, at..at + 1)? };
            }
            list[count] = position;
            count += 1;
        }
        Ok(count)
    }
}

/// Computes sparse attention.
///
/// # Errors
/// `Data` when a length or an index is out of range or a needed page is absent; nothing is written then.
/// `Internal` when there is no memory for the lists.
///
/// # Safety
/// The task's buffers are alive, hold what its contract says and are not touched by others meanwhile, results
/// overlap nothing, `plan_heads` accepted the width, and the processor has `isa`.
pub(crate) unsafe fn sparse_attention(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    sparse: SparseTask,
) -> Result<()> {
    let SparseTask { mut task, top_k, .. } = sparse;
    // SAFETY: the caller's promise.
    let (sequences, used) = unsafe { task.lengths.read(task.op)? };
    let (mut lists, mut tokens) = (Vec::<i32>::new(), Vec::<Sequence>::new());
    if lists.try_reserve_exact(used * top_k).is_err() || tokens.try_reserve_exact(used).is_err() {
        let what = format!("no host memory for {used} lists of {top_k}");
        return Err(OpError::Internal { op: task.op.into(), what });
    }
    lists.resize(used * top_k, 0);
    for s in &sequences {
        for token in s.token..s.token + s.q_len {
            let list = &mut lists[token * top_k..(token + 1) * top_k];
            // SAFETY: the caller's promise; lengths are in range.
            let kv_len = unsafe { sparse.read_list(token, s.index, list)? };
            tokens.push(Sequence { index: s.index, token, q_len: 1, kv_len });
        }
    }
    let spec = TensorSpec::of(DType::I32, &[used, top_k])?;
    task.lists = Some(View::new(&spec, lists.as_mut_ptr().cast()));
    // SAFETY: the caller's promise; rows from `used` on belong to no sequence; lists are checked and outlive the call.
    unsafe {
        clear_rows(&task, used);
        attend(team, max_threads, isa, &task, &tokens);
    }
    Ok(())
}
