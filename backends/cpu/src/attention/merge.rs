//! Merges partial results of attention: for each row a softmax over parts, then their weighted sum.
//!
//! One pass over the parts in pieces of columns that stay in cache; parts are added in their order.

use super::view::{View, read_row, write_row};
use crate::pool::scratch;
use crate::simd::{Kernel, Lanes, dispatch, math};
use crate::{Isa, Team};
use core::ops::Range;
use portolan_ops::Unsupported;
use portolan_ops::attention::MergeAttentionSpec;

/// Elements of parts a task reads: enough to be worth a hand-over.
const ELEMENTS_PER_TASK: usize = 32 << 10;

/// Columns summed at a time: 4 KiB of sums and as much of one part.
const PIECE: usize = 1024;

/// Parts whose weights are kept: 256 KiB.
const MAX_PARTS: usize = 1 << 16;

/// Whether the kernel takes this call.
pub(crate) fn plan_merge(spec: &MergeAttentionSpec) -> Result<(), Unsupported> {
    if spec.num_parts() > MAX_PARTS {
        return Err(Unsupported::Shape("at most 65536 parts"));
    }
    Ok(())
}

/// One merge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MergeTask {
    parts: View<4>,
    lses: View<3>,
    out: View<3>,
    lse: Option<View<2>>,
    num_parts: usize,
    rows: usize,
    heads: usize,
    dim: usize,
}

impl MergeTask {
    /// From the base addresses of parts, lses, out and lse (unused if the contract has none).
    pub(crate) fn new(
        spec: &MergeAttentionSpec,
        [parts, lses]: [*const u8; 2],
        [out, lse]: [*mut u8; 2],
    ) -> Self {
        let dims = spec.parts().dims();
        Self {
            parts: View::new(spec.parts(), parts.cast_mut()),
            lses: View::new(spec.lses(), lses.cast_mut()),
            out: View::new(spec.out(), out),
            lse: spec.lse().map(|spec| View::new(spec, lse)),
            num_parts: dims[0],
            rows: dims[1] * dims[2],
            heads: dims[2],
            dim: dims[3],
        }
    }
}

/// Merges.
///
/// # Safety
/// The task's buffers are alive, hold what its contract says and are not touched by others meanwhile, results
/// overlap nothing, `plan_merge` accepted the call, and the processor has `isa`.
pub(crate) unsafe fn merge_attention(team: &Team, max_threads: usize, isa: Isa, task: &MergeTask) {
    let row = (task.num_parts * task.dim).max(1);
    let rows = (ELEMENTS_PER_TASK / row).max(1);
    let weights = task.num_parts.next_multiple_of(16);
    team.run_with(task.rows.div_ceil(rows), max_threads, &|i| {
        let rows = i * rows..((i + 1) * rows).min(task.rows);
        scratch::with((weights + 2 * PIECE) * size_of::<f32>(), |buffer| {
            let weights = buffer.cast::<f32>();
            let sums = weights.wrapping_add(task.num_parts.next_multiple_of(16));
            let part = sums.wrapping_add(PIECE);
            dispatch(isa, Merge { task, rows: rows.clone(), weights, sums, part });
        });
    });
}

struct Merge<'a> {
    task: &'a MergeTask,
    rows: Range<usize>,
    /// One a part, and a multiple of 16 in all.
    weights: *mut f32,
    /// [`PIECE`] each.
    sums: *mut f32,
    part: *mut f32,
}

impl Kernel for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let task = self.task;
        for row in self.rows.clone() {
            let (token, head) = (row / task.heads, row % task.heads);
            // SAFETY: the promise of `merge_attention`: a row of every operand; buffers are as they say.
            unsafe {
                let lse = self.weigh::<L>(token, head);
                if let Some(view) = task.lse {
                    view.at([token, head]).cast::<f32>().write_unaligned(lse);
                }
                for first in (0..task.dim).step_by(PIECE) {
                    self.add::<L>([token, head, first], PIECE.min(task.dim - first));
                }
            }
        }
    }
}

impl Merge<'_> {
    /// The weights of the parts of one row, and the logarithm of their sum.
    ///
    /// # Safety
    /// As [`merge_attention`]; the row exists.
    #[inline(always)]
    unsafe fn weigh<L: Lanes>(&self, token: usize, head: usize) -> f32 {
        let (count, padded) = (self.task.num_parts, self.task.num_parts.next_multiple_of(16));
        let mut largest = f32::NEG_INFINITY;
        // SAFETY: the caller's promise; the weights have room for `padded`.
        unsafe {
            for part in 0..padded {
                let lse = match part < count {
                    true => self.task.lses.at([part, token, head]).cast::<f32>().read_unaligned(),
                    false => f32::NEG_INFINITY,
                };
                largest = largest.max(lse);
                *self.weights.add(part) = lse;
            }
            if largest == f32::NEG_INFINITY {
                self.weights.write_bytes(0, padded);
                return largest;
            }
            for part in (0..padded).step_by(L::LEN) {
                let at = self.weights.add(part);
                math::exp(L::load(at).sub(L::splat(largest))).store(at);
            }
            let sum = (0..count).fold(0.0, |sum, part| sum + *self.weights.add(part));
            (0..count).for_each(|part| *self.weights.add(part) /= sum);
            (f64::from(largest) + f64::from(sum).ln()) as f32
        }
    }

    /// The weighted sum of `len` columns, at most [`PIECE`], from `first` on.
    ///
    /// # Safety
    /// As [`merge_attention`]; the row and the columns exist.
    #[inline(always)]
    unsafe fn add<L: Lanes>(&self, [token, head, first]: [usize; 3], len: usize) {
        let (task, padded) = (self.task, len.next_multiple_of(L::LEN));
        // SAFETY: the caller's promise; a piece has room for `padded`.
        unsafe {
            self.sums.write_bytes(0, padded);
            self.part.add(len).write_bytes(0, padded - len);
            for part in 0..task.num_parts {
                let weight = *self.weights.add(part);
                // What weighs nothing may hold anything.
                if weight == 0.0 {
                    continue;
                }
                let from = task.parts.at([part, token, head, first]);
                read_row::<L>(task.parts.dtype(), from, task.parts.inner(), len, self.part);
                let weight = L::splat(weight);
                for i in (0..padded).step_by(L::LEN) {
                    let sum = L::load(self.part.add(i)).mul_add(weight, L::load(self.sums.add(i)));
                    sum.store(self.sums.add(i));
                }
            }
            let to = task.out.at([token, head, first]);
            write_row::<L>(task.out.dtype(), self.sums, task.out.inner(), len, to);
        }
    }
}
