//! The query block of decode: four lanes per row, each for every fourth element.
//!
//! With few rows (a GQA group of one token), a lane per row would leave most lanes idle. Here four elements
//! of a key are repeated over the vector, so AVX-512 takes 16 products a step with only four rows.

use super::form::{BLOCK, Form};
use crate::simd::Lanes;

/// Keys scored together, and quads of value columns accumulated together: enough independent chains to hide
/// the latency of two multiply-adds a cycle.
const CHAINS: usize = 8;

/// Four lanes per row.
pub(super) struct Quad;

impl Form for Quad {
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
    unsafe fn score<L: Lanes>(
        query: *const f32,
        block: *const f32,
        dim: usize,
        keys: usize,
        scores: *mut f32,
    ) {
        const { assert!(BLOCK.is_multiple_of(CHAINS)) };
        let mut key = 0;
        while key < keys {
            let mut sums = [L::zero(); CHAINS];
            // SAFETY: key + CHAINS ≤ BLOCK rows of dim elements exist, and BLOCK vectors of scores.
            unsafe {
                let rows = block.add(key * dim);
                for i in 0..dim / 4 {
                    let q = L::load(query.add(i * L::LEN));
                    for (key, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load_quads(rows.add(key * dim + 4 * i)).mul_add(q, *sum);
                    }
                }
                for (i, sum) in sums.iter().enumerate() {
                    sum.sum_quads().store(scores.add((key + i) * L::LEN));
                }
            }
            key += CHAINS;
        }
    }

    #[inline(always)]
    unsafe fn weigh<L: Lanes>(
        weights: *const f32,
        correction: *const f32,
        block: *const f32,
        dim: usize,
        keys: usize,
        result: *mut f32,
    ) {
        let quads = dim / 4;
        let mut quad = 0;
        // SAFETY: every call takes quads below dim / 4.
        unsafe {
            while quad + CHAINS <= quads {
                weigh_quads::<L, CHAINS>(weights, correction, block, dim, keys, quad, result);
                quad += CHAINS;
            }
            while quad + 4 <= quads {
                weigh_quads::<L, 4>(weights, correction, block, dim, keys, quad, result);
                quad += 4;
            }
            while quad < quads {
                weigh_quads::<L, 1>(weights, correction, block, dim, keys, quad, result);
                quad += 1;
            }
        }
    }
}

#[inline(always)]
unsafe fn weigh_quads<L: Lanes, const N: usize>(
    weights: *const f32,
    correction: *const f32,
    block: *const f32,
    dim: usize,
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
        for key in 0..keys {
            let p = L::load(weights.add(key * L::LEN));
            let values = block.add(key * dim + 4 * quad);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = L::load_quads(values.add(4 * i)).mul_add(p, *sum);
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            sum.store(result.add(i * L::LEN));
        }
    }
}
