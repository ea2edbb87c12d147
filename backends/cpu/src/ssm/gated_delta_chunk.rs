//! The gated delta rule by chunks of tokens, whose work is products of small matrices and a triangular system.
//!
//! With G the running sum of g in a chunk and S the state before it, what token t writes is
//! `u_t = β_t · (v_t − e^G_t · Sᵀk_t − Σ_{s < t} e^(G_t − G_s) · ⟨k_t, k_s⟩ · u_s)`, its result
//! `scale · (e^G_t · Sᵀq_t + Σ_{s ≤ t} e^(G_t − G_s) · ⟨q_t, k_s⟩ · u_s)`, and the state becomes
//! `e^G · S + Σ_s e^(G − G_s) · k_s ⊗ u_s`. The system is solved by substitution, as the rule itself would: no inverse
//! is formed.

use super::decays::Decays;
use super::gated_delta_rule::{GatedDeltaRuleViews, normalise};
use super::product::{Left, ROWS, Tile, accumulate, store_tile};
use super::spans::Span;
use crate::simd::Lanes;
use portolan_ops::ssm::GatedDeltaRuleSpec;

/// Tokens of a chunk. Scores cost as much as a pass over the state once a chunk is as long as a key; a quarter of usual
/// keys of 128 keeps them small beside the three passes, and enough rows for tiles.
const CHUNK: usize = 32;

/// One head of one sequence.
pub(super) struct Chunks<'a> {
    spec: &'a GatedDeltaRuleSpec,
    views: &'a GatedDeltaRuleViews,
    span: Span,
    head: usize,
    /// Rows and columns of the state, rounded up to whole vectors.
    rows: usize,
    columns: usize,
    at: Memory,
}

/// Where things lie in scratch.
#[derive(Clone, Copy)]
struct Memory {
    /// Keys and queries by token, keys by place.
    k: *mut f32,
    q: *mut f32,
    k_by_place: *mut f32,
    /// `⟨k_t, k_s⟩` and `⟨q_t, k_s⟩`, of which those with `s ≤ t` are used.
    key_scores: *mut f32,
    query_scores: *mut f32,
    /// Scores of ROWS tokens, weighed.
    weights: *mut f32,
    /// Values, then what is written.
    u: *mut f32,
    /// Results of ROWS tokens.
    results: *mut f32,
    decays: Decays,
    beta: *mut f32,
    state: *mut f32,
}

impl<'a> Chunks<'a> {
    fn sides(spec: &GatedDeltaRuleSpec) -> [usize; 2] {
        [spec.key_dim(), spec.value_dim()].map(|side| side.next_multiple_of(16))
    }

    /// Numbers that a head needs.
    pub(super) fn floats(spec: &GatedDeltaRuleSpec) -> usize {
        Self::lay_out(Self::sides(spec), core::ptr::null_mut()).1
    }

    fn lay_out([rows, columns]: [usize; 2], memory: *mut f32) -> (Memory, usize) {
        let mut used = 0;
        let mut take = |count: usize| {
            let at = memory.wrapping_add(used);
            used += count;
            at
        };
        let at = Memory {
            k: take(CHUNK * rows),
            q: take(CHUNK * rows),
            k_by_place: take(CHUNK * rows),
            key_scores: take(CHUNK * CHUNK),
            query_scores: take(CHUNK * CHUNK),
            weights: take(ROWS * CHUNK),
            u: take(CHUNK * columns),
            results: take(ROWS * columns),
            decays: Decays { high: take(CHUNK), low: take(CHUNK) },
            beta: take(CHUNK),
            state: take(rows * columns),
        };
        (at, used)
    }

    /// # Safety
    /// The head exists; `memory` has [`Chunks::floats`]; the views hold what the spec says.
    pub(super) unsafe fn new(
        spec: &'a GatedDeltaRuleSpec,
        views: &'a GatedDeltaRuleViews,
        memory: *mut f32,
        span: Span,
        head: usize,
    ) -> Self {
        let [rows, columns] = Self::sides(spec);
        let (at, used) = Self::lay_out([rows, columns], memory);
        // What lies behind the ends of rows stays 0; what a shorter last chunk leaves behind it is not used.
        // SAFETY: the caller's promise.
        unsafe { memory.write_bytes(0, used) };
        Self { spec, views, span, head, rows, columns, at }
    }

    /// All tokens.
    ///
    /// # Safety
    /// As [`Chunks::new`] says.
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes>(&self) {
        let (tokens, width) = (self.span.tokens, self.spec.value_dim());
        // SAFETY: the caller's promise; rows of the state lie within it.
        unsafe {
            let line = |i: usize| core::slice::from_raw_parts_mut(self.at.state.add(i * self.columns), width);
            if let Some(view) = &self.views.initial {
                for i in 0..self.spec.key_dim() {
                    view.load::<L, 3>([self.span.state, self.head, i], 0, line(i));
                }
            }
            let mut first = 0;
            while first < tokens {
                let count = CHUNK.min(tokens - first);
                self.load::<L>(first, count);
                self.score::<L>(self.at.k, self.at.key_scores, count);
                self.score::<L>(self.at.q, self.at.query_scores, count);
                for t in (0..count).step_by(ROWS) {
                    self.solve::<L>(t, count);
                    self.results::<L>(first, t, count);
                }
                self.carry::<L>(count);
                first += count;
            }
            if let Some(view) = &self.views.last {
                for i in 0..self.spec.key_dim() {
                    view.store::<L, 3>([self.span.state, self.head, i], 0, line(i));
                }
            }
        }
    }

    /// Operands of a chunk.
    ///
    /// # Safety
    /// Tokens `first..first + count` exist.
    #[inline(always)]
    unsafe fn load<L: Lanes>(&self, first: usize, count: usize) {
        let Memory { k, q, k_by_place, u, decays, beta, .. } = self.at;
        let (spec, views) = (self.spec, self.views);
        let key_head = self.head / (spec.heads() / spec.key_heads());
        let mut sum = 0f64;
        for s in 0..count {
            let keys = self.span.head(first + s, key_head);
            let at = self.span.at(first + s);
            // SAFETY: the caller's promise; rows hold so many numbers.
            unsafe {
                for (view, to) in [(&views.k, k), (&views.q, q)] {
                    let row = core::slice::from_raw_parts_mut(to.add(s * self.rows), spec.key_dim());
                    view.load::<L, 3>(keys, 0, row);
                    if let Some(eps) = spec.key_norm() {
                        normalise::<L>(to.add(s * self.rows), spec.key_dim(), eps);
                    }
                }
                for i in 0..spec.key_dim() {
                    *k_by_place.add(i * CHUNK + s) = *k.add(s * self.rows + i);
                }
                let row = core::slice::from_raw_parts_mut(u.add(s * self.columns), spec.value_dim());
                views.v.load::<L, 3>(self.span.head(first + s, self.head), 0, row);
                sum += f64::from(views.g.get(at, self.head));
                decays.set(s, sum);
                *beta.add(s) = views.beta.get(at, self.head);
            }
        }
    }

    /// Scores of rows against keys up to the diagonal, by tiles.
    ///
    /// # Safety
    /// The operands of `count` tokens are loaded.
    #[inline(always)]
    unsafe fn score<L: Lanes>(&self, rows: *const f32, scores: *mut f32, count: usize) {
        const { assert!(CHUNK.is_multiple_of(2 * L::LEN)) };
        for t in (0..count).step_by(ROWS) {
            for s in (0..t + ROWS).step_by(2 * L::LEN) {
                // SAFETY: tiles lie within rows of CHUNK.
                unsafe {
                    let mut sums: Tile<L, 2> = [[L::zero(); 2]; ROWS];
                    let left = Left { start: rows.add(t * self.rows), row: self.rows, term: 1 };
                    accumulate(&mut sums, left, self.at.k_by_place.add(s), CHUNK, self.spec.key_dim());
                    store_tile(&sums, scores.add(t * CHUNK + s), CHUNK);
                }
            }
        }
    }

    /// Weights of tokens `t..t + ROWS` from scores.
    ///
    /// # Safety
    /// Scores and decays are there.
    #[inline(always)]
    unsafe fn weigh<L: Lanes>(&self, scores: *const f32, t: usize, count: usize) {
        for r in 0..ROWS.min(count - t) {
            for s in (0..t + ROWS).step_by(L::LEN) {
                // SAFETY: the caller's promise; rows are whole vectors.
                unsafe {
                    let score = L::load(scores.add((t + r) * CHUNK + s));
                    let weight = score.mul(self.at.decays.between::<L>(t + r, s));
                    weight.store(self.at.weights.add(r * CHUNK + s));
                }
            }
        }
    }

    /// What tokens `t..t + ROWS` write.
    ///
    /// # Safety
    /// Everything is loaded, and what earlier tokens write is there.
    #[inline(always)]
    unsafe fn solve<L: Lanes>(&self, t: usize, count: usize) {
        // SAFETY: the caller's promise; tiles are whole vectors of the rounded columns.
        unsafe {
            self.weigh::<L>(self.at.key_scores, t, count);
            let mut i = 0;
            while i + 2 * L::LEN <= self.columns {
                self.solve_tile::<L, 2>(t, i);
                i += 2 * L::LEN;
            }
            if i < self.columns {
                self.solve_tile::<L, 1>(t, i);
            }
        }
    }

    /// # Safety
    /// As [`Chunks::solve`]; columns `i..` are V vectors.
    #[inline(always)]
    unsafe fn solve_tile<L: Lanes, const V: usize>(&self, t: usize, i: usize) {
        let Memory { weights, u, beta, .. } = self.at;
        // SAFETY: the caller's promise.
        unsafe {
            let held = self.seen::<L, V>(self.at.k, t, i);
            let mut written: Tile<L, V> = [[L::zero(); V]; ROWS];
            for r in 0..ROWS {
                let beta = L::splat(*beta.add(t + r));
                for v in 0..V {
                    let mut held = held[r][v];
                    for (s, written) in written.iter().enumerate().take(r) {
                        held = L::splat(*weights.add(r * CHUNK + t + s)).mul_add(written[v], held);
                    }
                    let value = L::load(u.add((t + r) * self.columns + i + v * L::LEN));
                    written[r][v] = value.sub(held).mul(beta);
                }
            }
            store_tile(&written, u.add(t * self.columns + i), self.columns);
        }
    }

    /// What the state before and tokens before `t` hold under the keys or queries of tokens `t..t + ROWS`.
    ///
    /// # Safety
    /// As [`Chunks::solve_tile`]; weights are those of these rows.
    #[inline(always)]
    unsafe fn seen<L: Lanes, const V: usize>(&self, rows: *const f32, t: usize, i: usize) -> Tile<L, V> {
        let Memory { weights, u, decays, state, .. } = self.at;
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums: Tile<L, V> = [[L::zero(); V]; ROWS];
            let left = Left { start: rows.add(t * self.rows), row: self.rows, term: 1 };
            accumulate(&mut sums, left, state.add(i), self.columns, self.spec.key_dim());
            for (r, sums) in sums.iter_mut().enumerate() {
                let kept = decays.since_start::<L>(t + r);
                for sum in sums {
                    *sum = sum.mul(kept);
                }
            }
            let left = Left { start: weights, row: CHUNK, term: 1 };
            accumulate(&mut sums, left, u.add(i), self.columns, t);
            sums
        }
    }

    /// The results of tokens `t..t + ROWS`.
    ///
    /// # Safety
    /// What they write is there.
    #[inline(always)]
    unsafe fn results<L: Lanes>(&self, first: usize, t: usize, count: usize) {
        // SAFETY: the caller's promise; tiles are whole vectors of the rounded columns.
        unsafe {
            self.weigh::<L>(self.at.query_scores, t, count);
            let mut i = 0;
            while i + 2 * L::LEN <= self.columns {
                self.result_tile::<L, 2>(t, i);
                i += 2 * L::LEN;
            }
            if i < self.columns {
                self.result_tile::<L, 1>(t, i);
            }
            for r in 0..ROWS.min(count - t) {
                let row = self.at.results.add(r * self.columns);
                let row = core::slice::from_raw_parts(row, self.spec.value_dim());
                self.views.out.store::<L, 3>(self.span.head(first + t + r, self.head), 0, row);
            }
        }
    }

    /// # Safety
    /// As [`Chunks::results`]; columns `i..` are V vectors.
    #[inline(always)]
    unsafe fn result_tile<L: Lanes, const V: usize>(&self, t: usize, i: usize) {
        let Memory { weights, u, results, .. } = self.at;
        let scale = L::splat(self.spec.scale());
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = self.seen::<L, V>(self.at.q, t, i);
            // On the diagonal a token sees no later one: 0 · NaN would be NaN.
            for s in 0..ROWS {
                for (r, sums) in sums.iter_mut().enumerate().skip(s) {
                    let weight = L::splat(*weights.add(r * CHUNK + t + s));
                    for (v, sum) in sums.iter_mut().enumerate() {
                        let written = L::load(u.add((t + s) * self.columns + i + v * L::LEN));
                        *sum = weight.mul_add(written, *sum);
                    }
                }
            }
            for sums in &mut sums {
                for sum in sums {
                    *sum = sum.mul(scale);
                }
            }
            store_tile(&sums, results.add(i), self.columns);
        }
    }

    /// The state behind the chunk.
    ///
    /// # Safety
    /// What its tokens write is there; it is weighed in place.
    #[inline(always)]
    unsafe fn carry<L: Lanes>(&self, count: usize) {
        let Memory { u, decays, weights, .. } = self.at;
        // SAFETY: the caller's promise; a row of weights is CHUNK long.
        unsafe {
            for s in (0..count).step_by(L::LEN) {
                decays.between::<L>(count - 1, s).store(weights.add(s));
            }
            for s in 0..count {
                for i in (0..self.columns).step_by(L::LEN) {
                    let at = u.add(s * self.columns + i);
                    L::splat(*weights.add(s)).mul(L::load(at)).store(at);
                }
            }
            let kept = decays.since_start::<L>(count - 1);
            for row in (0..self.spec.key_dim()).step_by(ROWS) {
                let mut i = 0;
                while i + 2 * L::LEN <= self.columns {
                    self.carry_tile::<L, 2>(row, i, count, kept);
                    i += 2 * L::LEN;
                }
                if i < self.columns {
                    self.carry_tile::<L, 1>(row, i, count, kept);
                }
            }
        }
    }

    /// # Safety
    /// Rows `row..row + ROWS` lie within the rounded state, columns `i..` too.
    #[inline(always)]
    unsafe fn carry_tile<L: Lanes, const V: usize>(&self, row: usize, i: usize, count: usize, kept: L) {
        // SAFETY: the caller's promise.
        unsafe {
            let at = self.at.state.add(row * self.columns + i);
            let mut sums: Tile<L, V> = [[L::zero(); V]; ROWS];
            for (r, sums) in sums.iter_mut().enumerate() {
                for (v, sum) in sums.iter_mut().enumerate() {
                    *sum = kept.mul(L::load(at.add(r * self.columns + v * L::LEN)));
                }
            }
            let left = Left { start: self.at.k.add(row), row: 1, term: self.rows };
            accumulate(&mut sums, left, self.at.u.add(i), self.columns, count);
            store_tile(&sums, at, self.columns);
        }
    }
}
