//! The query block of decode: four lanes per row, each for every fourth element.
//!
//! With few rows (a GQA group of one token), a lane per row would leave most lanes idle. Here four elements
//! of a key are repeated over the vector, so AVX-512 takes 16 products a step with only four rows.

use super::block::{LINE, Rows, prefetch};
use super::form::{BLOCK, Form};
use crate::simd::{Lanes, Stored};
use half::{bf16, f16};
use portolan_ops::DType;

/// Keys scored together. Rows of a cache often lie a power of two apart, so that lines of all of them compete for one
/// set of a first-level cache, which may have 8 ways: eight rows took half as long again as four (Zen 4).
const KEYS: usize = 4;

const _: () = assert!(BLOCK.is_multiple_of(KEYS));

/// Quads of value columns accumulated together: enough independent chains to hide the latency of two multiply-adds
/// a cycle.
const CHAINS: usize = 8;

/// Four lanes per row.
pub(super) struct Quad;

impl Form for Quad {
    const PACKED: bool = false;

    fn width<L: Lanes>() -> usize {
        L::LEN
    }

    fn rows<L: Lanes>() -> usize {
        L::LEN / 4
    }

    fn lanes() -> usize {
        4
    }

    fn query_len<L: Lanes>(dim: usize) -> usize {
        dim / 4 * L::LEN
    }

    fn result_len<L: Lanes>(dim: usize) -> usize {
        dim / 4 * L::LEN
    }

    #[inline(always)]
    unsafe fn put_query<L: Lanes>(panel: *mut f32, row: usize, from: *const f32, dim: usize) {
        for i in 0..dim {
            // SAFETY: the place is below dim/4 · LEN.
            unsafe { *panel.add(i / 4 * L::LEN + row * 4 + i % 4) = *from.add(i) };
        }
    }

    #[inline(always)]
    unsafe fn take_result<L: Lanes>(panel: *const f32, row: usize, to: *mut f32, dim: usize) {
        for i in 0..dim {
            // SAFETY: the place is below dim/4 · LEN.
            unsafe { *to.add(i) = *panel.add(i / 4 * L::LEN + row * 4 + i % 4) };
        }
    }

    #[inline(always)]
    unsafe fn score<L: Lanes>(query: *const f32, block: &Rows, dim: usize, keys: usize, scores: *mut f32) {
        // SAFETY: the caller's promise; rows are of this type.
        unsafe {
            match block.dtype {
                DType::F16 => score::<L, f16>(query, block, dim, keys, scores),
                DType::BF16 => score::<L, bf16>(query, block, dim, keys, scores),
                _ => score::<L, f32>(query, block, dim, keys, scores),
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<L: Lanes>(
        weights: *const f32,
        correction: *const f32,
        block: &Rows,
        dim: usize,
        keys: usize,
        result: *mut f32,
    ) {
        let at = [weights, correction];
        // SAFETY: the caller's promise; rows are of this type.
        unsafe {
            match block.dtype {
                DType::F16 => weigh::<L, f16>(at, block, dim, keys, result),
                DType::BF16 => weigh::<L, bf16>(at, block, dim, keys, result),
                _ => weigh::<L, f32>(at, block, dim, keys, result),
            }
        }
    }
}

#[inline(always)]
unsafe fn score<L: Lanes, T: Stored>(
    query: *const f32,
    block: &Rows,
    dim: usize,
    keys: usize,
    scores: *mut f32,
) {
    let per_line = LINE / (4 * size_of::<T>());
    let (groups, _) = block.at.as_chunks::<KEYS>();
    let (ahead, _) = block.ahead.as_chunks::<KEYS>();
    for (group, (rows, ahead)) in groups.iter().zip(ahead).enumerate().take(keys.div_ceil(KEYS)) {
        let rows = rows.map(|row| row.cast::<T>().cast_const());
        let mut sums = [L::zero(); KEYS];
        // SAFETY: every row has dim elements, and there are BLOCK vectors of scores.
        unsafe {
            for line in (0..dim / 4).step_by(per_line) {
                for row in ahead {
                    prefetch(row.wrapping_add(4 * line * size_of::<T>()));
                }
                for i in line..(line + per_line).min(dim / 4) {
                    let q = L::load(query.add(i * L::LEN));
                    for (row, sum) in rows.iter().zip(&mut sums) {
                        *sum = T::load_quads::<L>(row.add(4 * i)).mul_add(q, *sum);
                    }
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                sum.sum_quads().store(scores.add((group * KEYS + i) * L::LEN));
            }
        }
    }
}

#[inline(always)]
unsafe fn weigh<L: Lanes, T: Stored>(
    at: [*const f32; 2],
    block: &Rows,
    dim: usize,
    keys: usize,
    result: *mut f32,
) {
    let quads = dim / 4;
    let mut quad = 0;
    // SAFETY: every call takes quads below dim / 4.
    unsafe {
        while quad + CHAINS <= quads {
            weigh_quads::<L, T, CHAINS>(at, block, keys, quad, result);
            quad += CHAINS;
        }
        while quad + 4 <= quads {
            weigh_quads::<L, T, 4>(at, block, keys, quad, result);
            quad += 4;
        }
        while quad < quads {
            weigh_quads::<L, T, 1>(at, block, keys, quad, result);
            quad += 1;
        }
    }
}

/// The quads from `quad` on of the result.
#[inline(always)]
unsafe fn weigh_quads<L: Lanes, T: Stored, const N: usize>(
    [weights, correction]: [*const f32; 2],
    block: &Rows,
    keys: usize,
    quad: usize,
    result: *mut f32,
) {
    // SAFETY: quad + N ≤ dim / 4; keys rows of weights and values exist.
    unsafe {
        let result = result.add(quad * L::LEN);
        let correction = L::load(correction);
        let mut sums = [L::zero(); N];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = L::load(result.add(i * L::LEN)).mul(correction);
        }
        for (key, (row, ahead)) in block.at[..keys].iter().zip(&block.ahead).enumerate() {
            for at in (0..4 * N * size_of::<T>()).step_by(LINE) {
                prefetch(ahead.wrapping_add(4 * quad * size_of::<T>() + at));
            }
            let p = L::load(weights.add(key * L::LEN));
            let values = row.cast::<T>().cast_const().add(4 * quad);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = T::load_quads::<L>(values.add(4 * i)).mul_add(p, *sum);
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            sum.store(result.add(i * L::LEN));
        }
    }
}
