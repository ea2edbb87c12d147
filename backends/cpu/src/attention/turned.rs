//! Scores of few rows. Keys are turned, so that a vector has one element of as many keys; how, is a matter of their type.

use super::block::{LINE, Rows, prefetch};
use super::form::BLOCK;
use crate::simd::{Lanes, Short, Stored};
use core::mem::MaybeUninit;
use half::{bf16, f16};

/// An element type of keys.
pub(super) trait Turned: Stored {
    /// As [`Form::score`](super::form::Form::score), for `R` rows and keys of this type where they lie.
    ///
    /// # Safety
    /// Its own; BLOCK is a multiple of LEN.
    unsafe fn score<L: Lanes, const R: usize>(
        query: *const f32,
        block: &Rows,
        dim: usize,
        keys: usize,
        scores: *mut f32,
    );
}

macro_rules! turned {
    ($type:ty, $score:expr) => {
        impl Turned for $type {
            #[inline(always)]
            unsafe fn score<L: Lanes, const R: usize>(
                query: *const f32,
                block: &Rows,
                dim: usize,
                keys: usize,
                scores: *mut f32,
            ) {
                // SAFETY: the caller's promise.
                unsafe { $score(query, block, dim, keys, scores) }
            }
        }
    };
}
turned!(f32, score_lines::<L, R>);
turned!(bf16, score_fours::<L, bf16, R>);
turned!(f16, score_fours::<L, f16, R>);

/// Bytes of four words.
const FOUR: usize = 16;

/// As [`Turned::score`], four words of each key after the other: placed as they are read, and turned without a way
/// through memory. Keys of 128 elements and 8 heads lie 2 KiB apart, where lines of one vector fit a first-level cache
/// until all of each has been taken.
#[inline(always)]
unsafe fn score_fours<L: Lanes, T: Short, const R: usize>(
    query: *const f32,
    block: &Rows,
    dim: usize,
    keys: usize,
    scores: *mut f32,
) {
    let (fours, rest) = (dim / 8, dim % 8);
    for group in (0..keys).step_by(L::LEN) {
        let rows = block.at[group..group + L::LEN].as_ptr();
        let mut sums = [[L::zero(); 4]; R];
        for four in 0..fours {
            ask_ahead::<L>(&block.ahead[group..group + L::LEN], four);
            // SAFETY: the caller's promise; these words are within dim.
            unsafe {
                let words = L::turn_fours([
                    L::load_fours(rows, four * FOUR),
                    L::load_fours(rows.add(1), four * FOUR),
                    L::load_fours(rows.add(2), four * FOUR),
                    L::load_fours(rows.add(3), four * FOUR),
                ]);
                let query = query.add(8 * four);
                add_products::<L, R>(query, dim, T::quad_of(&words, 0), &mut sums);
                add_products::<L, R>(query.add(4), dim, T::quad_of(&words, 1), &mut sums);
            }
        }
        if rest != 0 {
            // SAFETY: as above; dim is a multiple of four.
            unsafe {
                let [a, b, c, d] = &last_words(rows, fours * FOUR, L::LEN);
                let words = [L::from_array(a), L::from_array(b), L::from_array(c), L::from_array(d)];
                add_products::<L, R>(query.add(8 * fours), dim, T::quad_of(&words, 0), &mut sums);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3]));
            // SAFETY: the caller's promise.
            unsafe { sum.store(scores.add(row * BLOCK + group)) };
        }
    }
}

/// Asks for lines of some of the rows to come: evenly over the products, since a processor forgets what it is asked for
/// faster than memory answers.
#[inline(always)]
fn ask_ahead<L: Lanes>(rows: &[*mut u8], four: usize) {
    const FOURS: usize = LINE / FOUR;
    let each = L::LEN / FOURS;
    for row in &rows[four % FOURS * each..][..each] {
        prefetch(row.wrapping_add(four / FOURS * LINE));
    }
}

/// The last two words of `count` rows, `at` bytes into them, turned; two of 0 behind them.
///
/// # Safety
/// There are `count` addresses, and these words of each row are readable.
#[inline(never)]
unsafe fn last_words(rows: *const *mut u8, at: usize, count: usize) -> [[f32; 16]; 4] {
    let mut words = [[0f32; 16]; 4];
    let [first, second, ..] = &mut words;
    for (row, (first, second)) in first.iter_mut().zip(second).enumerate().take(count) {
        // SAFETY: the caller's promise; only bits are moved.
        let pair = unsafe { (*rows.add(row)).wrapping_add(at).cast::<[f32; 2]>().read_unaligned() };
        [*first, *second] = pair;
    }
    words
}

/// As [`Turned::score`], a line of each key after the other: keys of 128 f32 and 8 heads lie 4 KiB apart, where those
/// of one vector drive each other out of a first-level cache unless all of a line is taken at once. While one strip is
/// multiplied the next is turned, in small steps: products and moves then share the ports of the processor.
#[inline(always)]
unsafe fn score_lines<L: Lanes, const R: usize>(
    query: *const f32,
    block: &Rows,
    dim: usize,
    keys: usize,
    scores: *mut f32,
) {
    // Keys without elements have one strip, of none.
    let parts = dim.div_ceil(L::LEN).max(1);
    let count = keys.div_ceil(L::LEN) * parts;
    // SAFETY: the caller's promise; BLOCK is a multiple of LEN.
    let strip = |i: usize| unsafe {
        let (group, first) = (i / parts * L::LEN, i % parts * L::LEN);
        Strip { keys: block.at.as_ptr().add(group), first, len: L::LEN.min(dim - first) }
    };
    let mut turned = [const { MaybeUninit::<[L; 16]>::uninit() }; 2];
    let mut fours = MaybeUninit::<[L; 16]>::uninit();
    let fours = fours.as_mut_ptr().cast::<L>();
    let [mut current, mut other] = turned.each_mut().map(|words| words.as_mut_ptr().cast::<L>());
    let mut sums = [[L::zero(); 4]; R];
    let mut now = strip(0);
    // SAFETY: as above; every strip is turned before it is used.
    unsafe { now.turn::<L>(fours, current) };
    for i in 0..count {
        let next = strip((i + 1).min(count - 1));
        let group = i / parts * L::LEN;
        // SAFETY: as above; a full strip has LEN elements of dim.
        unsafe {
            let query = query.add(now.first);
            if now.len == L::LEN {
                let half = L::LEN / 8;
                let ahead = Ahead { rows: block.ahead.as_ptr().add(group), at: now.first * size_of::<f32>() };
                for quad in 0..half {
                    for step in 0..L::LEN / 4 / half {
                        next.turn_rows::<L>(quad * (L::LEN / 4 / half) + step, fours);
                    }
                    ahead.ask(quad);
                    add_quad::<L, R>(query, dim, current, quad, &mut sums);
                }
                for quad in 0..half {
                    for step in 0..4 / half {
                        turn_columns(fours.cast_const(), quad * (4 / half) + step, other);
                    }
                    ahead.ask(half + quad);
                    add_quad::<L, R>(query, dim, current, half + quad, &mut sums);
                }
            } else {
                for quad in 0..now.len / 4 {
                    add_quad::<L, R>(query, dim, current, quad, &mut sums);
                }
                next.turn::<L>(fours, other);
            }
            if next.first == 0 || i + 1 == count {
                for (row, sums) in sums.iter_mut().enumerate() {
                    let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3]));
                    sum.store(scores.add(row * BLOCK + group));
                    *sums = [L::zero(); 4];
                }
            }
        }
        now = next;
        core::mem::swap(&mut current, &mut other);
    }
}

/// Adds the products of the elements `4 · quad ..` of a strip.
///
/// # Safety
/// As [`add_products`]; the strip's turned elements are there.
#[inline(always)]
unsafe fn add_quad<L: Lanes, const R: usize>(
    query: *const f32,
    dim: usize,
    turned: *const L,
    quad: usize,
    sums: &mut [[L; 4]; R],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let elements = turned.add(4 * quad).cast::<[L; 4]>().read();
        add_products::<L, R>(query.add(4 * quad), dim, elements, sums);
    }
}

/// Some elements of a vector of keys.
struct Strip {
    keys: *const *mut u8,
    first: usize,
    len: usize,
}

impl Strip {
    /// Turns the elements: a vector of `to` has one word of every key.
    #[inline(always)]
    unsafe fn turn<L: Lanes>(&self, fours: *mut L, to: *mut L) {
        // SAFETY: the caller has LEN keys of these elements.
        unsafe {
            for step in 0..L::LEN / 4 {
                self.turn_rows::<L>(step, fours);
            }
            for step in 0..4 {
                turn_columns(fours.cast_const(), step, to);
            }
        }
    }

    /// The first half of turning, for the keys `4 · step ..`.
    #[inline(always)]
    unsafe fn turn_rows<L: Lanes>(&self, step: usize, fours: *mut L) {
        let mut rows = [L::zero(); 4];
        for (i, row) in rows.iter_mut().enumerate() {
            // SAFETY: the caller has LEN keys of these elements.
            unsafe {
                let key = (*self.keys.add(4 * step + i)).cast::<f32>().cast_const().add(self.first);
                *row = if self.len == L::LEN { L::load(key) } else { L::load_partial(key, self.len) };
            }
        }
        let turned = L::turn_fours(rows);
        for (i, turned) in turned.into_iter().enumerate() {
            // SAFETY: there is room for LEN vectors.
            unsafe { fours.add(4 * step + i).write(turned) };
        }
    }
}

/// The second half of turning, for every fourth word from `step` on.
#[inline(always)]
unsafe fn turn_columns<L: Lanes>(fours: *const L, step: usize, to: *mut L) {
    let mut column = [L::zero(); 4];
    for (group, row) in column.iter_mut().enumerate().take(L::LEN / 4) {
        // SAFETY: the first half has written LEN vectors.
        *row = unsafe { fours.add(4 * group + step).read() };
    }
    for (i, word) in L::gather_fours(column).into_iter().enumerate().take(L::LEN / 4) {
        // SAFETY: there is room for LEN vectors.
        unsafe { to.add(4 * i + step).write(word) };
    }
}

/// The rows to come, and where in them the present strip is.
struct Ahead {
    rows: *const *mut u8,
    at: usize,
}

impl Ahead {
    /// Asks for lines, evenly over the products: a processor forgets what it is asked for faster than memory answers.
    #[inline(always)]
    unsafe fn ask(&self, quad: usize) {
        if self.at.is_multiple_of(LINE) {
            for row in 4 * quad..4 * (quad + 1) {
                // SAFETY: a strip of LEN rows has LEN / 4 quads.
                prefetch(unsafe { *self.rows.add(row) }.wrapping_add(self.at));
            }
        }
    }
}

/// Adds the products of four elements.
///
/// # Safety
/// There are R rows of queries, `dim` apart, with these elements.
#[inline(always)]
unsafe fn add_products<L: Lanes, const R: usize>(
    query: *const f32,
    dim: usize,
    elements: [L; 4],
    sums: &mut [[L; 4]; R],
) {
    for (chain, k) in elements.into_iter().enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let q = unsafe { *query.add(row * dim + chain) };
            sums[chain] = k.mul_add(L::splat(q), sums[chain]);
        }
    }
}
