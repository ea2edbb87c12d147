//! Sums, products, extremes and their places over one or several dimensions.
//!
//! Rows, whose reduced elements lie close together, are folded block by block: 32 interleaved partial results,
//! halved to one, blocks in order. Columns are folded a block of neighbours at a time, in order of the reduced.

use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Run, Walk};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::{BLOCK, Value, with_value};
use portolan_ops::kernel::{ReduceKind, ReduceSpec};
use portolan_ops::{DType, MAX_RANK, Result};
use smallvec::SmallVec;

/// Interleaved partial results of a block: four vectors of the widest path, to hide the latency of an addition.
const WAYS: usize = 32;

/// Runs `spec`.
///
/// # Safety
/// `x` and `out` are the starts of buffers that hold the operands' spans, which do not overlap.
pub(crate) unsafe fn reduce(exec: Exec<'_>, spec: &ReduceSpec, x: *const u8, out: *mut u8) -> Result<()> {
    let (kept, reduced) = split(spec);
    let job = Job {
        exec,
        kind: spec.kind(),
        from: spec.x().dtype(),
        to: spec.out().dtype(),
        count: spec.count(),
        x: Base::read(x),
        out: Base::write(out),
    };
    // Elements of one task: about the same work whatever the count.
    let task_len = (16_384 / job.count.max(1)).max(1);
    with_value!(job.from, V => {
        if columns_are_closer(spec) {
            columns::<V>(&job, &kept.cut_at(BLOCK, task_len.max(BLOCK)), &reduced);
        } else {
            rows::<V>(&job, &kept.cut_at(BLOCK, task_len), &reduced);
        }
    });
    Ok(())
}

/// What every part of one call needs.
#[derive(Clone, Copy)]
struct Job<'a> {
    exec: Exec<'a>,
    kind: ReduceKind,
    from: DType,
    to: DType,
    count: usize,
    x: Base,
    out: Base,
}

/// The walk over results (places of x and of out) and the one over what makes one result (places of x).
fn split(spec: &ReduceSpec) -> (Walk<2>, Walk<1>) {
    let (x, out) = (spec.x(), spec.out());
    let mut kept: SmallVec<[usize; MAX_RANK]> = SmallVec::new();
    let mut reduced: SmallVec<[usize; MAX_RANK]> = SmallVec::new();
    let (mut kept_strides, mut reduced_strides) = ([[0; 2]; MAX_RANK], [[0; 1]; MAX_RANK]);
    for (d, (&extent, &stride)) in x.dims().iter().zip(x.strides()).enumerate() {
        if spec.is_reduced(d) {
            reduced_strides[reduced.len()] = [stride];
            reduced.push(extent);
        } else {
            let in_out = if spec.keep_dims() { d } else { kept.len() };
            kept_strides[kept.len()] = [stride, out.strides()[in_out]];
            kept.push(extent);
        }
    }
    let offsets = [x.layout().offset(), out.layout().offset()];
    (Walk::of_parts(&kept, &kept_strides, offsets), Walk::of_parts(&reduced, &reduced_strides, [0]))
}

/// Whether neighbours in memory belong to different results.
fn columns_are_closer(spec: &ReduceSpec) -> bool {
    let closest = |reduced: bool| {
        let dims = spec.x().dims().iter().zip(spec.x().strides()).enumerate();
        dims.filter(|(d, (extent, _))| spec.is_reduced(*d) == reduced && **extent > 1)
            .map(|(_, (_, s))| *s)
            .min()
    };
    matches!((closest(false), closest(true)), (Some(kept), Some(reduced)) if kept < reduced)
}

fn identity<V: Value>(kind: ReduceKind) -> V {
    match kind {
        ReduceKind::Prod | ReduceKind::All => V::ONE,
        ReduceKind::Max => V::LOWEST,
        ReduceKind::Min => V::HIGHEST,
        _ => V::ZERO,
    }
}

fn rows<V: Value>(job: &Job<'_>, kept: &Walk<2>, reduced: &Walk<1>) {
    let job = *job;
    kept.run(job.exec, &|results| {
        for i in 0..results.len {
            let x_place = results.places[0] + i * results.strides[0];
            let out_place = results.places[1] + i * results.strides[1];
            let mut state = Row { total: identity::<V>(job.kind), best: None };
            for task in 0..reduced.tasks() {
                reduced.run_task(task, &mut |run| {
                    dispatch(job.exec.isa, FoldRow { job, run, x_place, state: &mut state });
                });
            }
            let total = match job.kind {
                ReduceKind::Mean => state.total.div(V::of_f64(job.count as f64)),
                _ => state.total,
            };
            let place = state.best.map_or(0, |(_, place)| place as i64);
            dispatch(
                job.exec.isa,
                Store { job, place: out_place, stride: 1, totals: &[total], found: &[place] },
            );
        }
    });
}

/// The running result of one row.
struct Row<V> {
    total: V,
    /// Key and place of the best so far.
    best: Option<(i64, usize)>,
}

struct FoldRow<'a, V> {
    job: Job<'a>,
    run: Run<1>,
    x_place: usize,
    state: &'a mut Row<V>,
}

impl<V: Value> Kernel for FoldRow<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Run { len, places, strides, first } = self.run;
        let mut buf = [V::ZERO; BLOCK];
        let mut i = 0;
        while i < len {
            let block = &mut buf[..BLOCK.min(len - i)];
            let place = self.x_place + places[0] + i * strides[0];
            // SAFETY: the run lies within x, as the caller of `reduce` promised.
            unsafe { V::load::<L>(self.job.from, self.job.x.start(), place, strides[0], block) };
            let total = &mut self.state.total;
            match self.job.kind {
                ReduceKind::Sum | ReduceKind::Mean => *total = total.add(fold(block, V::ZERO, V::add)),
                ReduceKind::Prod => *total = total.mul(fold(block, V::ONE, V::mul)),
                ReduceKind::Max => *total = total.max(fold(block, V::LOWEST, V::max)),
                ReduceKind::Min => *total = total.min(fold(block, V::HIGHEST, V::min)),
                ReduceKind::Any => *total = total.max(fold(block, V::ZERO, V::max)),
                ReduceKind::All => *total = total.min(fold(block, V::ONE, V::min)),
                ReduceKind::ArgMax => best(block, first + i, &mut self.state.best, |v| v.key()),
                // The complement reverses the order, so the smallest becomes the greatest.
                ReduceKind::ArgMin => best(block, first + i, &mut self.state.best, |v| !v.key()),
            }
            i += BLOCK;
        }
    }
}

/// Folds a block: element i into partial result i mod 32, then halves.
#[inline(always)]
fn fold<V: Copy>(values: &[V], identity: V, f: impl Fn(V, V) -> V) -> V {
    let mut partial = [identity; WAYS];
    let (chunks, rest) = values.as_chunks::<WAYS>();
    for chunk in chunks {
        for (p, &v) in partial.iter_mut().zip(chunk) {
            *p = f(*p, v);
        }
    }
    for (p, &v) in partial.iter_mut().zip(rest) {
        *p = f(*p, v);
    }
    let mut half = WAYS / 2;
    while half > 0 {
        for i in 0..half {
            partial[i] = f(partial[i], partial[i + half]);
        }
        half /= 2;
    }
    partial[0]
}

/// Moves `best` to the first element of the block with a greater key, if there is one.
#[inline(always)]
fn best<V: Copy>(values: &[V], first: usize, best: &mut Option<(i64, usize)>, key: impl Fn(V) -> i64) {
    let mut keys = [i64::MIN; BLOCK];
    for (k, &v) in keys.iter_mut().zip(values) {
        *k = key(v);
    }
    let keys = &keys[..values.len()];
    let greatest = fold(keys, i64::MIN, <i64 as Ord>::max);
    if best.is_none_or(|(key, _)| greatest > key) {
        let at = keys.iter().position(|&k| k == greatest).unwrap_or(0);
        *best = Some((greatest, first + at));
    }
}

fn columns<V: Value>(job: &Job<'_>, kept: &Walk<2>, reduced: &Walk<1>) {
    let job = *job;
    kept.run(job.exec, &|results| {
        let n = results.len;
        let mut totals = [identity::<V>(job.kind); BLOCK];
        let mut keys = [i64::MIN; BLOCK];
        let mut found = [0i64; BLOCK];
        for task in 0..reduced.tasks() {
            reduced.run_task(task, &mut |run| {
                let state =
                    Columns { totals: &mut totals[..n], keys: &mut keys[..n], found: &mut found[..n] };
                dispatch(job.exec.isa, FoldColumns { job, run, results, state });
            });
        }
        if job.kind == ReduceKind::Mean {
            let count = V::of_f64(job.count as f64);
            totals[..n].iter_mut().for_each(|t| *t = t.div(count));
        }
        let (place, stride) = (results.places[1], results.strides[1]);
        dispatch(job.exec.isa, Store { job, place, stride, totals: &totals[..n], found: &found[..n] });
    });
}

/// The running results of a block of neighbours.
struct Columns<'a, V> {
    totals: &'a mut [V],
    keys: &'a mut [i64],
    found: &'a mut [i64],
}

struct FoldColumns<'a, V> {
    job: Job<'a>,
    run: Run<1>,
    results: Run<2>,
    state: Columns<'a, V>,
}

impl<V: Value> Kernel for FoldColumns<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Columns { totals, keys, found } = self.state;
        let mut buf = [V::ZERO; BLOCK];
        let block = &mut buf[..totals.len()];
        for i in 0..self.run.len {
            let place = self.results.places[0] + self.run.places[0] + i * self.run.strides[0];
            // SAFETY: the runs lie within x, as the caller of `reduce` promised.
            unsafe { V::load::<L>(self.job.from, self.job.x.start(), place, self.results.strides[0], block) };
            let at = (self.run.first + i) as i64;
            match self.job.kind {
                ReduceKind::Sum | ReduceKind::Mean => each(totals, block, V::add),
                ReduceKind::Prod => each(totals, block, V::mul),
                ReduceKind::Max | ReduceKind::Any => each(totals, block, V::max),
                ReduceKind::Min | ReduceKind::All => each(totals, block, V::min),
                ReduceKind::ArgMax => improve(keys, found, block, at, |v| v.key()),
                ReduceKind::ArgMin => improve(keys, found, block, at, |v| !v.key()),
            }
        }
    }
}

#[inline(always)]
fn each<V: Copy>(totals: &mut [V], block: &[V], f: impl Fn(V, V) -> V) {
    for (total, &value) in totals.iter_mut().zip(block) {
        *total = f(*total, value);
    }
}

#[inline(always)]
fn improve<V: Copy>(keys: &mut [i64], found: &mut [i64], block: &[V], at: i64, key: impl Fn(V) -> i64) {
    for ((k, f), &value) in keys.iter_mut().zip(found).zip(block) {
        let candidate = key(value);
        // The first is always taken: `found` starts at 0.
        if candidate > *k {
            (*k, *f) = (candidate, at);
        }
    }
}

/// Writes results: totals, or the places found.
struct Store<'a, V> {
    job: Job<'a>,
    place: usize,
    stride: usize,
    totals: &'a [V],
    found: &'a [i64],
}

impl<V: Value> Kernel for Store<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (to, out) = (self.job.to, self.job.out.start());
        // SAFETY: the results lie within out, as the caller of `reduce` promised.
        unsafe {
            match self.job.kind.is_place() {
                true => i64::store::<L>(to, out, self.place, self.stride, self.found),
                false => V::store::<L>(to, out, self.place, self.stride, self.totals),
            }
        }
    }
}
