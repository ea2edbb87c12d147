//! Values that are not finite, below keys that some rows of a panel do not see.
//!
//! A key that a row does not see weighs 0 in it, but 0 · ∞ is NaN. Blocks where every row sees every key, and
//! blocks of finite values, need none of this; it gives the others the same order of operations, row by row.

use super::block::Rows;
use super::form::{self, BLOCK, Form};
use super::view::read_row;
use crate::simd::{Lanes, apart};

apart! {
    /// Whether the values of the first `count` rows of a block are finite.
    ///
    /// # Safety
    /// The rows have `dim` values; `line` has room for as many, rounded up to 16.
    pub(super) unsafe fn are_finite<'a, L>(
        block: &'a Rows<'a>,
        count: usize,
        dim: usize,
        line: *mut f32,
    ) -> bool {
        const { assert!(L::LEN <= 16) };
        let whole = dim.next_multiple_of(L::LEN);
        // 0 for as long as all are: ∞ − ∞ is NaN.
        let mut nothing = L::zero();
        // SAFETY: the caller's promise.
        unsafe {
            line.add(dim).write_bytes(0, whole - dim);
            for row in &block.at[..count] {
                read_row::<L>(block.dtype, *row, 1, dim, line);
                for i in (0..whole).step_by(L::LEN) {
                    let x = L::load(line.add(i));
                    nothing = nothing.add(x.sub(x));
                }
            }
            let mut lanes = [0f32; 16];
            nothing.store(lanes.as_mut_ptr());
            lanes.iter().all(|&lane| lane == 0.0)
        }
    }
}

/// As [`Form::weigh`], where each of the first `rows` rows takes only the keys from its lower to its upper bound.
///
/// # Safety
/// As [`Form::weigh`]; `bounds` is `[2][width]`, whole numbers up to `keys`.
pub(super) unsafe fn weigh<L: Lanes, F: Form>(
    bounds: *const f32,
    rows: usize,
    [weights, correction]: [*const f32; 2],
    block: &Rows,
    dim: usize,
    result: *mut f32,
) {
    let len = F::result_len::<L>(dim);
    let mut memory = vec![0f32; 2 * len + dim];
    let (before, rest) = memory.split_at_mut(len);
    let (after, line) = rest.split_at_mut(len);
    // SAFETY: the caller's promise.
    unsafe {
        before.copy_from_slice(core::slice::from_raw_parts(result, len));
        for row in 0..rows {
            let [low, high] =
                [*bounds.add(row), *bounds.add(F::width::<L>() + row)].map(|bound| bound as usize);
            let low = low.min(high).min(BLOCK - 1);
            let at = core::array::from_fn(|key| block.at[(low + key).min(BLOCK - 1)]);
            let seen = block.with(&at);
            after.copy_from_slice(before);
            let weights = weights.add(low * F::scores_of::<L>(row)[1]);
            form::weigh::<L, F>(weights, correction, &seen, dim, [high - low, rows], after.as_mut_ptr());
            F::take_result::<L>(after.as_ptr(), row, line.as_mut_ptr(), dim);
            F::put_result::<L>(result, row, line.as_ptr(), dim);
        }
    }
}
