//! The scan of heads by chunks of tokens, whose work is four products of small matrices.
//!
//! Within a chunk a token's result is `Σ_{s ≤ t} e^(A_t − A_s) · ⟨c_t, b_s⟩ · Δ_s·x_s`, A being the running sum of
//! `Δ·a`; what came before adds `e^A_t · h·c_t`; the state becomes `e^A · h + Σ_s e^(A − A_s) · Δ_s·x_s ⊗ b_s`. Scores
//! `⟨c_t, b_s⟩` are the same for all heads of a group. States lie by column in scratch, so that lanes run along the
//! rows of a head in every product.

use super::advance::softplus;
use super::decays::Decays;
use super::product::{Left, ROWS, Tile, accumulate, store_tile};
use super::spans::Span;
use super::ssd_scan::{SsdScanViews, skip_connection, step_size};
use crate::simd::Lanes;
use core::ops::Range;
use portolan_ops::ssm::SsdScanSpec;

/// Heads of one group of one sequence.
pub(super) struct Chunks<'a> {
    spec: &'a SsdScanSpec,
    views: &'a SsdScanViews,
    span: Span,
    group: usize,
    heads: Range<usize>,
    /// Tokens of a chunk, a head's rows and a state's columns, rounded up to whole vectors.
    sizes: Sizes,
    at: Memory,
}

#[derive(Clone, Copy)]
struct Sizes {
    chunk: usize,
    tokens: usize,
    rows: usize,
    columns: usize,
}

impl Sizes {
    fn of(spec: &SsdScanSpec, tokens: usize) -> Self {
        let chunk = spec.chunk().min(tokens);
        Self {
            chunk,
            tokens: chunk.next_multiple_of(32),
            rows: spec.head_dim().next_multiple_of(16),
            columns: spec.state().next_multiple_of(16),
        }
    }
}

/// Where things lie in scratch.
#[derive(Clone, Copy)]
struct Memory {
    /// b and c by token, b by column.
    b: *mut f32,
    c: *mut f32,
    b_by_column: *mut f32,
    /// `⟨c_t, b_s⟩`, of which those with `s ≤ t` are used.
    scores: *mut f32,
    /// Scores of ROWS tokens, weighed.
    weights: *mut f32,
    /// `Δ·x` by token.
    inputs: *mut f32,
    /// Results of ROWS tokens, and one row of x.
    results: *mut f32,
    x: *mut f32,
    /// Step sizes, then what is left of each token's input behind the chunk.
    step: *mut f32,
    /// Of `Δ·a`.
    decays: Decays,
    /// By head, by column.
    states: *mut f32,
}

impl<'a> Chunks<'a> {
    /// Numbers that `heads` together need for up to `tokens` tokens.
    pub(super) fn floats(spec: &SsdScanSpec, tokens: usize, heads: usize) -> usize {
        Self::lay_out(Sizes::of(spec, tokens), heads, core::ptr::null_mut()).1
    }

    fn lay_out(sizes: Sizes, heads: usize, memory: *mut f32) -> (Memory, usize) {
        let Sizes { tokens, rows, columns, .. } = sizes;
        let mut used = 0;
        let mut take = |count: usize| {
            let at = memory.wrapping_add(used);
            used += count;
            at
        };
        let at = Memory {
            b: take(tokens * columns),
            c: take(tokens * columns),
            b_by_column: take(tokens * columns),
            scores: take(tokens * tokens),
            weights: take(ROWS * tokens),
            inputs: take(tokens * rows),
            results: take(ROWS * rows),
            x: take(rows),
            step: take(tokens),
            decays: Decays { high: take(tokens), low: take(tokens) },
            states: take(heads * rows * columns),
        };
        (at, used)
    }

    /// # Safety
    /// The heads exist and are of the group; `memory` has [`Chunks::floats`] for them; the views hold what the spec
    /// says.
    pub(super) unsafe fn new(
        spec: &'a SsdScanSpec,
        views: &'a SsdScanViews,
        memory: *mut f32,
        span: Span,
        group: usize,
        heads: Range<usize>,
    ) -> Self {
        let sizes = Sizes::of(spec, span.tokens);
        let (at, used) = Self::lay_out(sizes, heads.len(), memory);
        // What lies behind the ends of rows stays 0; what a shorter last chunk leaves behind it is not used.
        // SAFETY: the caller's promise.
        unsafe { memory.write_bytes(0, used) };
        Self { spec, views, span, group, heads, sizes, at }
    }

    #[inline(always)]
    fn state(&self, head: usize) -> *mut f32 {
        let size = self.sizes.rows * self.sizes.columns;
        self.at.states.wrapping_add((head - self.heads.start) * size)
    }

    /// All tokens.
    ///
    /// # Safety
    /// As [`Chunks::new`] says.
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes>(&self) {
        let (rows, n) = (self.sizes.rows, self.spec.state());
        // A row of the state as it lies in memory; b is not read yet, or no more.
        // SAFETY: the caller's promise; the row has room for the state's columns.
        unsafe {
            let line = core::slice::from_raw_parts_mut(self.at.b, n);
            if let Some(view) = &self.views.initial {
                for head in self.heads.clone() {
                    for p in 0..self.spec.head_dim() {
                        view.load::<L, 3>([self.span.state, head, p], 0, line);
                        for (i, &value) in line.iter().enumerate() {
                            *self.state(head).add(i * rows + p) = value;
                        }
                    }
                }
            }
            let mut first = 0;
            while first < self.span.tokens {
                let count = self.sizes.chunk.min(self.span.tokens - first);
                self.load_factors::<L>(first, count);
                self.score::<L>(count);
                for head in self.heads.clone() {
                    self.load_inputs::<L>(head, first, count);
                    self.results::<L>(head, first, count);
                    self.carry::<L>(head, count);
                }
                first += count;
            }
            let line = core::slice::from_raw_parts_mut(self.at.b, n);
            if let Some(view) = &self.views.last {
                for head in self.heads.clone() {
                    for p in 0..self.spec.head_dim() {
                        for (i, value) in line.iter_mut().enumerate() {
                            *value = *self.state(head).add(i * rows + p);
                        }
                        view.store::<L, 3>([self.span.state, head, p], 0, line);
                    }
                }
            }
        }
    }

    /// b and c of a chunk.
    ///
    /// # Safety
    /// Tokens `first..first + count` exist.
    #[inline(always)]
    unsafe fn load_factors<L: Lanes>(&self, first: usize, count: usize) {
        let Sizes { tokens, columns, .. } = self.sizes;
        let n = self.spec.state();
        for s in 0..count {
            let at = self.span.head(first + s, self.group);
            // SAFETY: the caller's promise; a row holds n numbers.
            unsafe {
                let b = core::slice::from_raw_parts_mut(self.at.b.add(s * columns), n);
                self.views.b.load::<L, 3>(at, 0, b);
                for (i, &value) in b.iter().enumerate() {
                    *self.at.b_by_column.add(i * tokens + s) = value;
                }
                let c = core::slice::from_raw_parts_mut(self.at.c.add(s * columns), n);
                self.views.c.load::<L, 3>(at, 0, c);
            }
        }
    }

    /// Scores up to the diagonal, by tiles.
    ///
    /// # Safety
    /// The factors of `count` tokens are loaded.
    #[inline(always)]
    unsafe fn score<L: Lanes>(&self, count: usize) {
        let Sizes { tokens, columns, .. } = self.sizes;
        for t in (0..count).step_by(ROWS) {
            for s in (0..t + ROWS).step_by(2 * L::LEN) {
                // SAFETY: tiles lie within rows of `tokens`, a multiple of 32.
                unsafe {
                    let mut sums: Tile<L, 2> = [[L::zero(); 2]; ROWS];
                    let left = Left { start: self.at.c.add(t * columns), row: columns, term: 1 };
                    let right = self.at.b_by_column.add(s);
                    accumulate(&mut sums, left, right, tokens, self.spec.state());
                    store_tile(&sums, self.at.scores.add(t * tokens + s), tokens);
                }
            }
        }
    }

    /// Step sizes, running sums and `Δ·x` of one head.
    ///
    /// # Safety
    /// The head and tokens `first..first + count` exist.
    #[inline(always)]
    unsafe fn load_inputs<L: Lanes>(&self, head: usize, first: usize, count: usize) {
        let Memory { step, decays, inputs, .. } = self.at;
        let rows = self.sizes.rows;
        // SAFETY: the caller's promise; arrays have room for whole vectors.
        unsafe {
            for s in 0..count {
                *step.add(s) = step_size(self.views, self.span.at(first + s), head);
            }
            if self.spec.has_softplus() {
                for s in (0..count).step_by(L::LEN) {
                    softplus(L::load(step.add(s))).store(step.add(s));
                }
            }
            let rate = f64::from(self.views.a.get([], head));
            let mut sum = 0f64;
            for s in 0..count {
                sum += f64::from(*step.add(s)) * rate;
                decays.set(s, sum);
            }
            for s in 0..count {
                let to = inputs.add(s * rows);
                let row = core::slice::from_raw_parts_mut(to, self.spec.head_dim());
                self.views.x.load::<L, 3>(self.span.head(first + s, head), 0, row);
                for i in (0..rows).step_by(L::LEN) {
                    L::splat(*step.add(s)).mul(L::load(to.add(i))).store(to.add(i));
                }
            }
        }
    }

    /// The results of one head.
    ///
    /// # Safety
    /// Scores and inputs are there.
    #[inline(always)]
    unsafe fn results<L: Lanes>(&self, head: usize, first: usize, count: usize) {
        let Memory { scores, weights, results, x, decays, .. } = self.at;
        let Sizes { tokens, rows, .. } = self.sizes;
        // SAFETY: the head exists.
        let skip = self.views.d.as_ref().map(|view| unsafe { view.get([], head) });
        for t in (0..count).step_by(ROWS) {
            // SAFETY: rows and tiles lie within their arrays, which are whole vectors long.
            unsafe {
                for r in 0..ROWS.min(count - t) {
                    for s in (0..t + ROWS).step_by(L::LEN) {
                        let score = L::load(scores.add((t + r) * tokens + s));
                        score.mul(decays.between::<L>(t + r, s)).store(weights.add(r * tokens + s));
                    }
                }
                let mut i = 0;
                while i + 2 * L::LEN <= rows {
                    self.tile::<L, 2>(head, t, i);
                    i += 2 * L::LEN;
                }
                if i < rows {
                    self.tile::<L, 1>(head, t, i);
                }
                for r in 0..ROWS.min(count - t) {
                    let (at, y) = (self.span.head(first + t + r, head), results.add(r * rows));
                    if let Some(skip) = skip {
                        let row = core::slice::from_raw_parts_mut(x, self.spec.head_dim());
                        self.views.x.load::<L, 3>(at, 0, row);
                        skip_connection::<L>(skip, x, y, self.spec.head_dim());
                    }
                    let row = core::slice::from_raw_parts(y, self.spec.head_dim());
                    self.views.out.store::<L, 3>(at, 0, row);
                }
            }
        }
    }

    /// Numbers `i..` of the results of tokens `t..t + ROWS`: the state before, then the chunk's tokens in order.
    ///
    /// # Safety
    /// Weights and inputs are there.
    #[inline(always)]
    unsafe fn tile<L: Lanes, const V: usize>(&self, head: usize, t: usize, i: usize) {
        let Memory { c, weights, inputs, decays, results, .. } = self.at;
        let Sizes { tokens, rows, columns, .. } = self.sizes;
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums: Tile<L, V> = [[L::zero(); V]; ROWS];
            let left = Left { start: c.add(t * columns), row: columns, term: 1 };
            accumulate(&mut sums, left, self.state(head).add(i), rows, self.spec.state());
            for (r, sums) in sums.iter_mut().enumerate() {
                let kept = decays.since_start::<L>(t + r);
                for sum in sums {
                    *sum = sum.mul(kept);
                }
            }
            let left = Left { start: weights, row: tokens, term: 1 };
            accumulate(&mut sums, left, inputs.add(i), rows, t);
            // On the diagonal a token sees no later one: 0 · NaN would be NaN.
            for s in 0..ROWS {
                for (r, sums) in sums.iter_mut().enumerate().skip(s) {
                    let weight = L::splat(*weights.add(r * tokens + t + s));
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = weight.mul_add(L::load(inputs.add((t + s) * rows + i + v * L::LEN)), *sum);
                    }
                }
            }
            store_tile(&sums, results.add(i), rows);
        }
    }

    /// The state behind the chunk.
    ///
    /// # Safety
    /// Inputs are there; they are weighed in place.
    #[inline(always)]
    unsafe fn carry<L: Lanes>(&self, head: usize, count: usize) {
        let Memory { inputs, step, decays, .. } = self.at;
        let Sizes { rows, .. } = self.sizes;
        // SAFETY: the caller's promise; arrays have room for whole vectors.
        unsafe {
            for s in (0..count).step_by(L::LEN) {
                decays.between::<L>(count - 1, s).store(step.add(s));
            }
            for s in 0..count {
                for i in (0..rows).step_by(L::LEN) {
                    let at = inputs.add(s * rows + i);
                    L::splat(*step.add(s)).mul(L::load(at)).store(at);
                }
            }
            let kept = decays.since_start::<L>(count - 1);
            for n in (0..self.spec.state()).step_by(ROWS) {
                let mut i = 0;
                while i + 2 * L::LEN <= rows {
                    self.carry_tile::<L, 2>(head, n, i, count, kept);
                    i += 2 * L::LEN;
                }
                if i < rows {
                    self.carry_tile::<L, 1>(head, n, i, count, kept);
                }
            }
        }
    }

    /// # Safety
    /// Columns `n..n + ROWS` lie within the rounded state, numbers `i..` within a head's rows.
    #[inline(always)]
    unsafe fn carry_tile<L: Lanes, const V: usize>(
        &self,
        head: usize,
        n: usize,
        i: usize,
        count: usize,
        kept: L,
    ) {
        let Sizes { rows, columns, .. } = self.sizes;
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.state(head).add(n * rows + i);
            let mut sums: Tile<L, V> = [[L::zero(); V]; ROWS];
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = kept.mul(L::load(at.add(r * rows + v * L::LEN)));
                }
            }
            let left = Left { start: self.at.b.add(n), row: 1, term: columns };
            accumulate(&mut sums, left, self.at.inputs.add(i), rows, count);
            store_tile(&sums, at, rows);
        }
    }
}
