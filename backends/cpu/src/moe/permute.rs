//! Rows to their experts: one pass over the ids numbers them, then rows are copied on all threads.

use super::{Grid, Lines, clear, data};
use crate::elementwise::walk::Base;
use crate::movement::copy::copy_run;
use crate::queue::Exec;
use crate::rows::for_each_range;
use portolan_ops::moe::MoePermuteSpec;
use portolan_ops::{OpError, Result, TensorSpec};

const OP: &str = "moe_permute";

/// The starts of the operands' allocations; null where the call has no such operand.
pub(crate) struct PermutePointers {
    pub(crate) x: *const u8,
    pub(crate) expert_ids: *const u8,
    pub(crate) out: *mut u8,
    pub(crate) row_map: *mut u8,
    pub(crate) offsets: *mut u8,
    pub(crate) counts: *mut u8,
    pub(crate) dropped: *mut u8,
}

/// Copies rows to their experts.
///
/// # Errors
/// `Data` for an expert id that is out of range.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and results overlap nothing.
pub(crate) unsafe fn permute(exec: &Exec, spec: &MoePermuteSpec, pointers: &PermutePointers) -> Result<()> {
    let (k, experts) = (spec.top_k(), spec.num_experts());
    let pairs = spec.tokens() * k;
    let (ids, map) = (Grid::of(spec.expert_ids()), Grid::of(spec.row_map()));
    let capacity = spec.capacity().unwrap_or(usize::MAX);
    // SAFETY: the pair exists, so does its element.
    let id = |pair: usize| unsafe { *pointers.expert_ids.cast::<i32>().add(ids.at(pair / k, pair % k)) };
    // SAFETY: as above.
    let row_of = |pair: usize| unsafe { pointers.row_map.cast::<i32>().add(map.at(pair / k, pair % k)) };

    let mut counts = zeros(experts)?;
    for pair in 0..pairs {
        if let Ok(expert) = usize::try_from(id(pair)) {
            let Some(count) = counts.get_mut(expert) else {
                let (token, j) = (pair / k, pair % k);
                return Err(data(
                    OP,
                    format!("expert_ids[{token}, {j}] is {expert}, there are {experts} experts"),
                ));
            };
            *count += 1;
        }
    }
    let write = |spec: Option<&TensorSpec>, base: *mut u8, at: usize, value: usize| {
        if let Some(spec) = spec {
            // SAFETY: the operand exists and has element `at`.
            unsafe { *base.cast::<i32>().add(Grid::of(spec).at(at, 0)) = value as i32 };
        }
    };
    // Where the next row of each expert goes, and where it may not go any more.
    let mut next = zeros(experts)?;
    let mut end = zeros(experts)?;
    let mut total = 0;
    write(spec.offsets(), pointers.offsets, 0, 0);
    for (expert, &count) in counts.iter().enumerate() {
        let kept = count.min(capacity);
        next[expert] = if spec.counts().is_some() { expert * capacity } else { total };
        end[expert] = next[expert] + kept;
        total += kept;
        write(spec.offsets(), pointers.offsets, expert + 1, total);
        write(spec.counts(), pointers.counts, expert, kept);
        write(spec.dropped(), pointers.dropped, expert, count - kept);
    }
    for pair in 0..pairs {
        let mut row = -1;
        if let Ok(expert) = usize::try_from(id(pair))
            && next[expert] < end[expert]
        {
            row = next[expert] as i32;
            next[expert] += 1;
        }
        // SAFETY: as above.
        unsafe { *row_of(pair) = row };
    }

    let width = spec.x().dims()[1];
    if width == 0 {
        return Ok(());
    }
    let x = Grid::of(spec.x());
    let out = Lines::of(spec.out());
    let (from, to) = (Base::read(pointers.x), Base::write(pointers.out));
    let (bytes, map_base) = (spec.x().dtype().bytes_for(1), Base::read(pointers.row_map));
    for_each_range(&exec.team, exec.threads, pairs, width, &|range| {
        for pair in range {
            // SAFETY: written above; the row is one of out, and this pair's own.
            unsafe {
                let row = *map_base.start().cast::<i32>().add(map.at(pair / k, pair % k));
                if let Ok(row) = usize::try_from(row) {
                    let places = [x.at(pair / k, 0), out.at(row)];
                    copy_run(bytes, from, to, width, places, [x.strides[1], out.step]);
                }
            }
        }
    });
    // What no row went to: behind the last, or at the end of every room.
    let rooms = if spec.counts().is_some() { spec.out().dims()[1] } else { spec.out().dims()[0] };
    for_each_range(&exec.team, exec.threads, spec.out().shape().rows(), width, &|range| {
        for row in range {
            let used = if spec.counts().is_some() { end[row / rooms] } else { total };
            if row >= used {
                // SAFETY: the row is one of out, and nobody copies to it.
                unsafe { clear(bytes, to, width, out.at(row), out.step) };
            }
        }
    });
    Ok(())
}

/// Zeros, one an expert.
fn zeros(len: usize) -> Result<Vec<usize>> {
    let mut list = Vec::new();
    if list.try_reserve_exact(len).is_err() {
        return Err(OpError::internal(OP, format!("no host memory for the counts of {len} experts")));
    }
    list.resize(len, 0);
    Ok(list)
}
