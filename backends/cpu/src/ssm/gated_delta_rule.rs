//! The gated delta rule: token by token for a few tokens, by chunks (`gated_delta_chunk`) for more.
//!
//! Token by token, columns of a head's state stay in the nearest cache for as long as the sequence runs. They do not
//! depend on one another, so a task has a few vectors of them, and lanes run along them: no sum crosses lanes.

use super::gated_delta_chunk::Chunks;
use super::spans::{Span, Spans};
use super::view::View;
use crate::Isa;
use crate::pool::{Team, scratch};
use crate::rows::for_each_range;
use crate::simd::{Kernel, Lanes, dispatch, math};
use core::ops::Range;
use portolan_ops::Unsupported;
use portolan_ops::ssm::GatedDeltaRuleSpec;

/// Columns of a task: those of a state with 128 rows take 16 KiB, half of a first-level cache.
const COLUMNS: usize = 32;

/// The longest key: scratch is bounded by it, at half a MiB.
const MAX_KEY: usize = 4096;

/// Fewer tokens than these are taken one by one: of a chunk of them the scores would be most of the work.
const FEW: usize = 8;

/// The longest side of a state that chunks are made for: scratch is bounded by it, at some 4 MiB.
const MAX_SIDE: usize = 1024;

/// Rows whose sums are kept apart, so that there are independent chains.
const CHAINS: usize = 4;

/// Whether the kernel takes it.
pub(crate) fn plan(spec: &GatedDeltaRuleSpec) -> Result<(), Unsupported> {
    match spec.key_dim() <= MAX_KEY {
        true => Ok(()),
        false => Err(Unsupported::Shape("a key of more than 4096 numbers")),
    }
}

/// The operands.
pub(crate) struct GatedDeltaRuleViews {
    pub(crate) q: View,
    pub(crate) k: View,
    pub(crate) v: View,
    pub(crate) g: View,
    pub(crate) beta: View,
    pub(crate) initial: Option<View>,
    pub(crate) out: View,
    pub(crate) last: Option<View>,
}

/// Runs every head's rule.
///
/// # Safety
/// The views hold what the spec describes, which [`plan`] took; nothing else touches them meanwhile, and outputs
/// overlap inputs only where the spec allows it.
pub(crate) unsafe fn gated_delta_rule(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &GatedDeltaRuleSpec,
    spans: &Spans,
    views: &GatedDeltaRuleViews,
) {
    let size = spec.key_dim().max(1).saturating_mul(spec.value_dim().max(1));
    let by_chunks = spec.key_dim().max(spec.value_dim()) <= MAX_SIDE;
    let chunked = |span: Span| by_chunks && span.tokens >= FEW;
    // A sequence goes the way it would go alone, whatever the others do.
    if by_chunks && spans.longest() >= FEW {
        let (heads, work) = (spans.count() * spec.heads(), spans.usual().saturating_mul(size));
        for_each_range(team, max_threads, heads, work, &|range| {
            scratch::with(Chunks::floats(spec) * size_of::<f32>(), |memory| {
                dispatch(isa, Heads { spec, spans, views, range, chunked: &chunked, memory: memory.cast() });
            });
        });
    }
    if !by_chunks || spans.shortest() < FEW {
        let tasks = spans.count() * spec.heads() * spec.value_dim().div_ceil(COLUMNS);
        let key = spec.key_dim().next_multiple_of(16);
        let work = spans.usual().saturating_mul(spec.key_dim().max(1) * COLUMNS);
        for_each_range(team, max_threads, tasks, work, &|range| {
            scratch::with(key * (COLUMNS + 2) * size_of::<f32>(), |memory| {
                dispatch(isa, Blocks { spec, spans, views, range, chunked: &chunked, memory: memory.cast() });
            });
        });
    }
    // SAFETY: the caller's promise.
    unsafe { spans.clear::<3>(&views.out, spec.heads(), spec.value_dim()) };
}

struct Heads<'a> {
    spec: &'a GatedDeltaRuleSpec,
    spans: &'a Spans,
    views: &'a GatedDeltaRuleViews,
    range: Range<usize>,
    /// Whether a sequence is worked on by chunks.
    chunked: &'a (dyn Fn(Span) -> bool + Sync),
    memory: *mut f32,
}

impl Kernel for Heads<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        for index in self.range {
            let (span, head) = (self.spans.get(index / self.spec.heads()), index % self.spec.heads());
            if (self.chunked)(span) {
                // SAFETY: the memory has what a head needs, and the promise of `gated_delta_rule`.
                unsafe { Chunks::new(self.spec, self.views, self.memory, span, head).run::<L>() };
            }
        }
    }
}

struct Blocks<'a> {
    spec: &'a GatedDeltaRuleSpec,
    spans: &'a Spans,
    views: &'a GatedDeltaRuleViews,
    range: Range<usize>,
    /// Whether a sequence is worked on by chunks.
    chunked: &'a (dyn Fn(Span) -> bool + Sync),
    memory: *mut f32,
}

impl Kernel for Blocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let blocks = self.spec.value_dim().div_ceil(COLUMNS);
        for index in self.range.clone() {
            let (row, first) = (index / blocks, index % blocks * COLUMNS);
            let (span, head) = (self.spans.get(row / self.spec.heads()), row % self.spec.heads());
            if (self.chunked)(span) {
                continue;
            }
            // SAFETY: the memory has what one block needs, and the promise of `gated_delta_rule`.
            unsafe {
                match L::LEN {
                    16 => self.block::<L, 2>(span, head, first),
                    _ => self.block::<L, 4>(span, head, first),
                }
            }
        }
    }
}

impl Blocks<'_> {
    /// Columns `first..` of one head; they are V vectors.
    ///
    /// # Safety
    /// They exist; the memory has a state of COLUMNS columns and two keys, rounded up to whole vectors.
    #[inline(always)]
    unsafe fn block<L: Lanes, const V: usize>(&self, span: Span, head: usize, first: usize) {
        const { assert!(COLUMNS.is_multiple_of(V)) };
        let Self { spec, views, memory, .. } = *self;
        let rows = spec.key_dim();
        let count = COLUMNS.min(spec.value_dim() - first);
        let key_head = head / (spec.heads() / spec.key_heads());
        let padded = rows.next_multiple_of(16);
        // SAFETY: the caller's promise; the memory is written before it is read.
        unsafe {
            memory.write_bytes(0, padded * (COLUMNS + 2));
            let (state, k, q) = (memory, memory.add(padded * COLUMNS), memory.add(padded * (COLUMNS + 1)));
            let line = |i: usize| core::slice::from_raw_parts_mut(state.add(i * COLUMNS), count);
            if let Some(view) = &views.initial {
                for i in 0..rows {
                    view.load::<L, 3>([span.state, head, i], first, line(i));
                }
            }
            let mut values = [0f32; COLUMNS];
            for t in 0..span.tokens {
                let keys = span.head(t, key_head);
                views.k.load::<L, 3>(keys, 0, core::slice::from_raw_parts_mut(k, rows));
                views.q.load::<L, 3>(keys, 0, core::slice::from_raw_parts_mut(q, rows));
                if let Some(eps) = spec.key_norm() {
                    normalise::<L>(k, rows, eps);
                    normalise::<L>(q, rows, eps);
                }
                views.v.load::<L, 3>(span.head(t, head), first, &mut values[..count]);
                let decay = math::exp(L::splat(views.g.get(span.at(t), head)));
                let beta = L::splat(views.beta.get(span.at(t), head));
                let held = held::<L, V>(state, k, rows);
                let mut change = [L::zero(); V];
                for (v, change) in change.iter_mut().enumerate() {
                    let value = L::load(values.as_ptr().add(v * L::LEN));
                    *change = decay.neg_mul_add(held[v], value).mul(beta);
                }
                let read = write_and_read::<L, V>(state, [k, q], rows, decay, change);
                for (v, read) in read.iter().enumerate() {
                    read.mul(L::splat(spec.scale())).store(values.as_mut_ptr().add(v * L::LEN));
                }
                views.out.store::<L, 3>(span.head(t, head), first, &values[..count]);
            }
            if let Some(view) = &views.last {
                for i in 0..rows {
                    view.store::<L, 3>([span.state, head, i], first, line(i));
                }
            }
        }
    }
}

/// Multiplies a vector by `1 / √(Σ x² + eps)`.
///
/// # Safety
/// It has n numbers, and 0 behind them up to a multiple of 16.
#[inline(always)]
pub(super) unsafe fn normalise<L: Lanes>(x: *mut f32, n: usize, eps: f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut squares = L::zero();
        for i in (0..n).step_by(L::LEN) {
            let part = L::load(x.add(i));
            squares = part.mul_add(part, squares);
        }
        let root = L::splat(1.0 / (squares.sum() + eps).sqrt());
        for i in (0..n).step_by(L::LEN) {
            // Behind the end 0 · ∞ may stand: no loop over rows gets there.
            L::load(x.add(i)).mul(root).store(x.add(i));
        }
    }
}

/// Sums over rows, in CHAINS chains that are added up two by two.
#[inline(always)]
fn join<L: Lanes, const V: usize>(chains: [[L; V]; CHAINS]) -> [L; V] {
    let mut joined = chains[0];
    for (v, joined) in joined.iter_mut().enumerate() {
        *joined = chains[0][v].add(chains[1][v]).add(chains[2][v].add(chains[3][v]));
    }
    joined
}

/// `Σ_i k[i] · state[i]`.
///
/// # Safety
/// There are so many rows of COLUMNS numbers, and of the key.
#[inline(always)]
unsafe fn held<L: Lanes, const V: usize>(state: *const f32, k: *const f32, rows: usize) -> [L; V] {
    let mut chains = [[L::zero(); V]; CHAINS];
    let mut i = 0;
    // SAFETY: rows below `rows`, as the caller promised.
    unsafe {
        while i + CHAINS <= rows {
            for (r, sums) in chains.iter_mut().enumerate() {
                hold(sums, state, k, i + r);
            }
            i += CHAINS;
        }
        while i < rows {
            hold(&mut chains[0], state, k, i);
            i += 1;
        }
    }
    join(chains)
}

/// # Safety
/// Row i exists.
#[inline(always)]
unsafe fn hold<L: Lanes, const V: usize>(sums: &mut [L; V], state: *const f32, k: *const f32, i: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let key = L::splat(*k.add(i));
        for (v, sum) in sums.iter_mut().enumerate() {
            *sum = key.mul_add(L::load(state.add(i * COLUMNS + v * L::LEN)), *sum);
        }
    }
}

/// `state[i] = decay · state[i] + k[i] · change`, and `Σ_i q[i] · state[i]` of it.
///
/// # Safety
/// As [`held`]; the state is writable.
#[inline(always)]
unsafe fn write_and_read<L: Lanes, const V: usize>(
    state: *mut f32,
    keys: [*const f32; 2],
    rows: usize,
    decay: L,
    change: [L; V],
) -> [L; V] {
    let mut chains = [[L::zero(); V]; CHAINS];
    let mut i = 0;
    // SAFETY: rows below `rows`, as the caller promised.
    unsafe {
        while i + CHAINS <= rows {
            for (r, sums) in chains.iter_mut().enumerate() {
                write(sums, state, keys, i + r, decay, change);
            }
            i += CHAINS;
        }
        while i < rows {
            write(&mut chains[0], state, keys, i, decay, change);
            i += 1;
        }
    }
    join(chains)
}

/// # Safety
/// Row i exists, and is writable.
#[inline(always)]
unsafe fn write<L: Lanes, const V: usize>(
    sums: &mut [L; V],
    state: *mut f32,
    [k, q]: [*const f32; 2],
    i: usize,
    decay: L,
    change: [L; V],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let (key, query) = (L::splat(*k.add(i)), L::splat(*q.add(i)));
        for (v, sum) in sums.iter_mut().enumerate() {
            let at = state.add(i * COLUMNS + v * L::LEN);
            let new = key.mul_add(change[v], decay.mul(L::load(at)));
            new.store(at);
            *sum = query.mul_add(new, *sum);
        }
    }
}
