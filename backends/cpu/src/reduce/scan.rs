//! Scans: one running value per row, in order; rows side by side in memory advance together as a block.

use crate::elementwise::Exec;
use crate::elementwise::walk::{Base, Run, Walk};
use crate::simd::{Kernel, Lanes, dispatch};
use crate::value::{BLOCK, Value, with_value};
use core::marker::PhantomData;
use portolan_ops::kernel::{ScanKind, ScanSpec};
use portolan_ops::{DType, MAX_RANK, Result, TensorSpec};
use smallvec::SmallVec;

/// The operands' first bytes; absent ones are not touched.
#[derive(Clone, Copy)]
pub(crate) struct ScanPointers {
    /// Factors of the linear form.
    pub(crate) decay: *const u8,
    /// What is accumulated.
    pub(crate) x: *const u8,
    /// Starting values.
    pub(crate) initial: *const u8,
    /// Running values.
    pub(crate) out: *mut u8,
    /// Last running values.
    pub(crate) last: *mut u8,
}

/// Runs `spec`.
///
/// # Safety
/// The pointers are the starts of buffers that hold the operands' spans; outputs overlap an input only where they
/// are its view, as the spec allows.
pub(crate) unsafe fn scan(exec: Exec<'_>, spec: &ScanSpec, pointers: ScanPointers) -> Result<()> {
    let decay = spec.decay().map(|a| a.broadcast_to(spec.x().shape())).transpose()?;
    // Places, in this order: decay, x, out, initial, last.
    let whole = [decay.as_ref(), Some(spec.x()), Some(spec.out())];
    let states = [spec.initial(), spec.last()];
    let mut dims: SmallVec<[usize; MAX_RANK]> = SmallVec::new();
    let mut strides = [[0; 5]; MAX_RANK];
    let stride = |s: Option<&TensorSpec>, d: usize| s.map_or(0, |s| s.strides()[d]);
    for d in (0..spec.x().rank()).filter(|&d| d != spec.dim()) {
        let at = dims.len();
        let [a, x, out] = whole.map(|s| stride(s, d));
        let [initial, last] = states.map(|s| stride(s, at));
        strides[at] = [a, x, out, initial, last];
        dims.push(spec.x().dims()[d]);
    }
    let offset = |s: Option<&TensorSpec>| s.map_or(0, |s| s.layout().offset());
    let offsets =
        [offset(whole[0]), offset(whole[1]), offset(whole[2]), offset(states[0]), offset(states[1])];
    let extent = spec.x().dims()[spec.dim()];
    let task_len = (16_384 / extent.max(1)).max(1);
    let walk = Walk::of_parts(&dims, &strides, offsets).cut_at(BLOCK, task_len);
    let job = Job {
        kind: spec.kind(),
        exclusive: spec.is_exclusive(),
        dtype: spec.x().dtype(),
        extent,
        steps: whole.map(|s| stride(s, spec.dim())),
        has_decay: decay.is_some(),
        initial: spec.initial().map(|s| (Base::read(pointers.initial), s.dtype())),
        last: spec.last().map(|s| (Base::write(pointers.last), s.dtype())),
        bases: [Base::read(pointers.decay), Base::read(pointers.x), Base::write(pointers.out)],
    };
    walk.run(exec, &|run| {
        with_value!(job.dtype, V => dispatch(exec.isa, Rows::<V> { job: &job, run, value: PhantomData }))
    });
    Ok(())
}

/// What every part of one call needs; arrays are in the order decay, x, out.
struct Job {
    kind: ScanKind,
    exclusive: bool,
    dtype: DType,
    extent: usize,
    steps: [usize; 3],
    has_decay: bool,
    initial: Option<(Base, DType)>,
    last: Option<(Base, DType)>,
    bases: [Base; 3],
}

struct Rows<'a, V> {
    job: &'a Job,
    run: Run<5>,
    value: PhantomData<V>,
}

impl<V: Value> Kernel for Rows<'_, V> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (job, run) = (self.job, self.run);
        let mut running = [start::<V>(job.kind); BLOCK];
        let running = &mut running[..run.len];
        if let Some((base, dtype)) = job.initial {
            // SAFETY: the rows lie within the operand, as the caller of `scan` promised.
            unsafe { V::load::<L>(dtype, base.start(), run.places[3], run.strides[3], running) };
        }
        if run.len > 1 && run.strides[1] < job.steps[1] {
            side_by_side::<L, V>(job, run, running);
        } else {
            for (row, running) in running.iter_mut().enumerate() {
                *running = along::<L, V>(job, run, row, *running);
            }
        }
        if let Some((base, dtype)) = job.last {
            // SAFETY: as above.
            unsafe { V::store::<L>(dtype, base.start(), run.places[4], run.strides[4], running) };
        }
    }
}

fn start<V: Value>(kind: ScanKind) -> V {
    match kind {
        ScanKind::Prod => V::ONE,
        ScanKind::Max => V::LOWEST,
        _ => V::ZERO,
    }
}

#[inline(always)]
fn step<V: Value>(kind: ScanKind, running: V, a: V, x: V) -> V {
    match kind {
        ScanKind::Sum => running.add(x),
        ScanKind::Prod => running.mul(x),
        ScanKind::Max => running.max(x),
        ScanKind::Linear => a.mul(running).add(x),
    }
}

/// Advances a block of neighbouring rows by one place at a time.
#[inline(always)]
fn side_by_side<L: Lanes, V: Value>(job: &Job, run: Run<5>, running: &mut [V]) {
    let n = running.len();
    let (mut a, mut x) = ([V::ZERO; BLOCK], [V::ZERO; BLOCK]);
    for t in 0..job.extent {
        let at = |operand: usize| run.places[operand] + t * job.steps[operand];
        // SAFETY: the rows lie within the operands, as the caller of `scan` promised.
        unsafe {
            V::load::<L>(job.dtype, job.bases[1].start(), at(1), run.strides[1], &mut x[..n]);
            if job.has_decay {
                V::load::<L>(job.dtype, job.bases[0].start(), at(0), run.strides[0], &mut a[..n]);
            }
            if job.exclusive {
                V::store::<L>(job.dtype, job.bases[2].start(), at(2), run.strides[2], running);
            }
        }
        for (running, (&a, &x)) in running.iter_mut().zip(a.iter().zip(&x)) {
            *running = step(job.kind, *running, a, x);
        }
        if !job.exclusive {
            // SAFETY: as above.
            unsafe { V::store::<L>(job.dtype, job.bases[2].start(), at(2), run.strides[2], running) };
        }
    }
}

/// Runs along one row, a block of places at a time; returns the last running value.
#[inline(always)]
fn along<L: Lanes, V: Value>(job: &Job, run: Run<5>, row: usize, mut running: V) -> V {
    let (mut a, mut x) = ([V::ZERO; BLOCK], [V::ZERO; BLOCK]);
    let mut t = 0;
    while t < job.extent {
        let n = BLOCK.min(job.extent - t);
        let at = |operand: usize| run.places[operand] + row * run.strides[operand] + t * job.steps[operand];
        // SAFETY: the row lies within the operands, as the caller of `scan` promised.
        unsafe {
            V::load::<L>(job.dtype, job.bases[1].start(), at(1), job.steps[1], &mut x[..n]);
            if job.has_decay {
                V::load::<L>(job.dtype, job.bases[0].start(), at(0), job.steps[0], &mut a[..n]);
            }
        }
        for (x, &a) in x[..n].iter_mut().zip(&a) {
            let before = running;
            running = step(job.kind, running, a, *x);
            *x = if job.exclusive { before } else { running };
        }
        // SAFETY: as above.
        unsafe { V::store::<L>(job.dtype, job.bases[2].start(), at(2), job.steps[2], &x[..n]) };
        t += BLOCK;
    }
    running
}
