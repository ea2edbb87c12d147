//! Root-mean-square norm, with or without the residual sum before it: one kernel, two passes over a row
//! that is in the first-level cache for the second.

use crate::Isa;
use crate::pool::Team;
use crate::rows::{Row, Rows, for_each_range, with_float};
use crate::simd::{Kernel, Lanes, Stored, dispatch};
use core::ops::Range;
use portolan_ops::DType;
use portolan_ops::norm::{AddRmsNormSpec, RmsNormSpec};

/// Normalises the rows of x.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, `weight` is given exactly
/// where the spec has one, nothing else touches them meanwhile, and out overlaps x only where it is x.
pub(crate) unsafe fn rms_norm(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &RmsNormSpec,
    x: *const u8,
    weight: Option<*const u8>,
    out: *mut u8,
) {
    let weight = spec.weight().zip(weight);
    let run = Run { team, max_threads, isa, rows: spec.rows(), n: spec.n(), eps: spec.eps() };
    with_float!(spec.x().dtype(), T => {
        let (x, out) = (Rows::<T>::new(spec.x(), x), Rows::<T>::new(spec.out(), out));
        match weight {
            Some((w, at)) if w.dtype() == DType::F32 => run.on::<T, T, f32>(&x, None, Some(Rows::new(w, at)), &out),
            Some((w, at)) => run.on::<T, T, T>(&x, None, Some(Rows::new(w, at)), &out),
            None => run.on::<T, T, f32>(&x, None, None, &out),
        }
    });
}

/// Adds x to the residual and normalises the sum.
///
/// # Safety
/// As [`rms_norm`]; residual overlaps nothing else.
#[allow(clippy::too_many_arguments, reason = "the operands of the operator, one each")]
pub(crate) unsafe fn add_rms_norm(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &AddRmsNormSpec,
    x: *const u8,
    residual: *mut u8,
    weight: Option<*const u8>,
    out: *mut u8,
) {
    let weight = spec.weight().zip(weight);
    let run = Run { team, max_threads, isa, rows: spec.rows(), n: spec.n(), eps: spec.eps() };
    with_float!(spec.x().dtype(), T => {
        let (x, out) = (Rows::<T>::new(spec.x(), x), Rows::<T>::new(spec.out(), out));
        let wide = spec.residual().dtype() == DType::F32;
        let narrow_weight = weight.filter(|(w, _)| w.dtype() != DType::F32);
        match (wide, narrow_weight) {
            (true, Some((w, at))) => {
                let residual = Rows::<f32>::new(spec.residual(), residual);
                run.on::<T, f32, T>(&x, Some(residual), Some(Rows::new(w, at)), &out);
            }
            (true, None) => {
                let residual = Rows::<f32>::new(spec.residual(), residual);
                run.on::<T, f32, f32>(&x, Some(residual), weight.map(|(w, at)| Rows::new(w, at)), &out);
            }
            (false, Some((w, at))) => {
                let residual = Rows::<T>::new(spec.residual(), residual);
                run.on::<T, T, T>(&x, Some(residual), Some(Rows::new(w, at)), &out);
            }
            (false, None) => {
                let residual = Rows::<T>::new(spec.residual(), residual);
                run.on::<T, T, f32>(&x, Some(residual), weight.map(|(w, at)| Rows::new(w, at)), &out);
            }
        }
    });
}

struct Run<'a> {
    team: &'a Team,
    max_threads: usize,
    isa: Isa,
    rows: usize,
    n: usize,
    eps: f32,
}

impl Run<'_> {
    fn on<T: Stored, R: Stored, W: Stored>(
        &self,
        x: &Rows<T>,
        residual: Option<Rows<R>>,
        weight: Option<Rows<W>>,
        out: &Rows<T>,
    ) {
        if self.n == 0 {
            return;
        }
        let (residual, weight) = (residual.as_ref(), weight.as_ref());
        let unit = x.is_unit()
            && out.is_unit()
            && residual.is_none_or(Rows::is_unit)
            && weight.is_none_or(Rows::is_unit);
        for_each_range(self.team, self.max_threads, self.rows, self.n, &|rows| {
            let (n, eps) = (self.n, self.eps);
            match unit {
                true => dispatch(self.isa, Norm::<T, R, W, true> { x, residual, weight, out, rows, n, eps }),
                false => {
                    dispatch(self.isa, Norm::<T, R, W, false> { x, residual, weight, out, rows, n, eps })
                }
            }
        });
    }
}

struct Norm<'a, T, R, W, const UNIT: bool> {
    x: &'a Rows<T>,
    residual: Option<&'a Rows<R>>,
    weight: Option<&'a Rows<W>>,
    out: &'a Rows<T>,
    rows: Range<usize>,
    n: usize,
    eps: f32,
}

impl<T: Stored, R: Stored, W: Stored, const UNIT: bool> Kernel for Norm<'_, T, R, W, UNIT> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let n = self.n;
        for index in self.rows {
            // The only row, or one for each group, in turn.
            let weight = self.weight.map(|w| w.row::<UNIT>(index));
            let (x, out) = (self.x.row::<UNIT>(index), self.out.row::<UNIT>(index));
            match self.residual {
                Some(residual) => {
                    let residual = residual.row::<UNIT>(index);
                    // SAFETY: rows of n elements, by the promise of `add_rms_norm`.
                    unsafe {
                        let factor = reciprocal_root(add::<L, T, R, UNIT>(x, residual, n), n, self.eps);
                        scale::<L, R, W, T, UNIT>(residual, factor, weight, out, n);
                    }
                }
                // SAFETY: rows of n elements, by the promise of `rms_norm`.
                None => unsafe {
                    let factor = reciprocal_root(squares::<L, T, UNIT>(x, n), n, self.eps);
                    scale::<L, T, W, T, UNIT>(x, factor, weight, out, n);
                },
            }
        }
    }
}

fn reciprocal_root(sum: f32, n: usize, eps: f32) -> f32 {
    1.0 / (sum / n as f32 + eps).sqrt()
}

/// Sums kept apart, so that one addition need not wait for the last.
const SUMS: usize = 4;

/// The sum of the squares of a row: four vectors of partial sums, joined in a fixed order.
///
/// # Safety
/// The row has n readable elements.
#[inline(always)]
unsafe fn squares<L: Lanes, T: Stored, const UNIT: bool>(x: Row<'_, T, UNIT>, n: usize) -> f32 {
    let mut sums = [L::zero(); SUMS];
    let mut i = 0;
    while i + SUMS * L::LEN <= n {
        for (k, sum) in sums.iter_mut().enumerate() {
            // SAFETY: below n.
            let v = unsafe { x.load::<L>(i + k * L::LEN, L::LEN) };
            *sum = v.mul_add(v, *sum);
        }
        i += SUMS * L::LEN;
    }
    while i < n {
        // SAFETY: below n.
        let v = unsafe { x.load::<L>(i, L::LEN.min(n - i)) };
        sums[0] = v.mul_add(v, sums[0]);
        i += L::LEN;
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

/// Adds x to the residual, rounded to its type, and returns the sum of the squares of what was stored.
///
/// # Safety
/// Both rows have n elements, the residual's writable.
#[inline(always)]
unsafe fn add<L: Lanes, T: Stored, R: Stored, const UNIT: bool>(
    x: Row<'_, T, UNIT>,
    residual: Row<'_, R, UNIT>,
    n: usize,
) -> f32 {
    let mut sums = [L::zero(); SUMS];
    let mut i = 0;
    while i < n {
        for sum in &mut sums {
            if i >= n {
                break;
            }
            let count = L::LEN.min(n - i);
            // SAFETY: below n. Reading back what was written rounds it.
            let v = unsafe {
                residual.store(i, count, residual.load::<L>(i, count).add(x.load::<L>(i, count)));
                residual.load::<L>(i, count)
            };
            *sum = v.mul_add(v, *sum);
            i += L::LEN;
        }
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

/// `out = x · factor · weight`.
///
/// # Safety
/// All rows have n elements, out's writable.
#[inline(always)]
unsafe fn scale<L: Lanes, X: Stored, W: Stored, T: Stored, const UNIT: bool>(
    x: Row<'_, X, UNIT>,
    factor: f32,
    weight: Option<Row<'_, W, UNIT>>,
    out: Row<'_, T, UNIT>,
    n: usize,
) {
    let factor = L::splat(factor);
    let mut i = 0;
    while i < n {
        let count = L::LEN.min(n - i);
        // SAFETY: below n.
        unsafe {
            let mut v = x.load::<L>(i, count).mul(factor);
            if let Some(weight) = weight {
                v = v.mul(weight.load::<L>(i, count));
            }
            out.store(i, count, v);
        }
        i += L::LEN;
    }
}
