//! Layer norm: the mean, the squares of what differs from it, and the result; the row stays in the first-level
//! cache for the second and third pass.

use crate::Isa;
use crate::pool::Team;
use crate::rows::{Row, Rows, for_each_range, with_float};
use crate::simd::{Kernel, Lanes, Stored, dispatch};
use core::ops::Range;
use portolan_ops::DType;
use portolan_ops::norm::LayerNormSpec;

/// The operands' first bytes; weight and bias are given exactly where the spec has them.
#[derive(Clone, Copy)]
pub(crate) struct LayerNormPointers {
    /// What is normalised.
    pub(crate) x: *const u8,
    /// Factors of the columns.
    pub(crate) weight: Option<*const u8>,
    /// What is added to the columns.
    pub(crate) bias: Option<*const u8>,
    /// Result.
    pub(crate) out: *mut u8,
}

/// Normalises the rows of x.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and out overlaps x only where it is x.
pub(crate) unsafe fn layer_norm(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &LayerNormSpec,
    pointers: LayerNormPointers,
) {
    let columns = spec.weight().or(spec.bias()).map_or(DType::F32, |spec| spec.dtype());
    let run = Run { team, max_threads, isa, spec, pointers };
    with_float!(spec.x().dtype(), T => match columns {
        DType::F32 => run.on::<T, f32>(),
        _ => run.on::<T, T>(),
    });
}

struct Run<'a> {
    team: &'a Team,
    max_threads: usize,
    isa: Isa,
    spec: &'a LayerNormSpec,
    pointers: LayerNormPointers,
}

impl Run<'_> {
    fn on<T: Stored, W: Stored>(&self) {
        let (n, eps) = (self.spec.n(), self.spec.eps());
        if n == 0 {
            return;
        }
        let (isa, spec, pointers) = (self.isa, self.spec, self.pointers);
        let (x, out) = (&Rows::<T>::new(spec.x(), pointers.x), &Rows::<T>::new(spec.out(), pointers.out));
        let weight = spec.weight().zip(pointers.weight).map(|(w, at)| Rows::<W>::new(w, at));
        let bias = spec.bias().zip(pointers.bias).map(|(b, at)| Rows::<W>::new(b, at));
        let (weight, bias) = (weight.as_ref(), bias.as_ref());
        let unit = x.is_unit()
            && out.is_unit()
            && weight.is_none_or(Rows::is_unit)
            && bias.is_none_or(Rows::is_unit);
        for_each_range(self.team, self.max_threads, spec.rows(), n, &|rows| match unit {
            true => dispatch(isa, Norm::<T, W, true> { x, weight, bias, out, rows, n, eps }),
            false => dispatch(isa, Norm::<T, W, false> { x, weight, bias, out, rows, n, eps }),
        });
    }
}

struct Norm<'a, T, W, const UNIT: bool> {
    x: &'a Rows<T>,
    weight: Option<&'a Rows<W>>,
    bias: Option<&'a Rows<W>>,
    out: &'a Rows<T>,
    rows: Range<usize>,
    n: usize,
    eps: f32,
}

impl<T: Stored, W: Stored, const UNIT: bool> Kernel for Norm<'_, T, W, UNIT> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let n = self.n;
        let (weight, bias) = (self.weight.map(|w| w.row::<UNIT>(0)), self.bias.map(|b| b.row::<UNIT>(0)));
        for index in self.rows {
            let (x, out) = (self.x.row::<UNIT>(index), self.out.row::<UNIT>(index));
            // SAFETY: rows of n elements, by the promise of `layer_norm`.
            unsafe {
                let mean = sum::<L, T, UNIT>(x, n) / n as f32;
                let variance = squares::<L, T, UNIT>(x, mean, n) / n as f32;
                let factor = 1.0 / (variance + self.eps).sqrt();
                scale::<L, T, W, UNIT>(x, [mean, factor], weight, bias, out, n);
            }
        }
    }
}

/// Sums kept apart, so that one addition need not wait for the last.
const SUMS: usize = 4;

/// The sum of a row: four vectors of partial sums, joined in a fixed order.
///
/// # Safety
/// The row has n readable elements.
#[inline(always)]
unsafe fn sum<L: Lanes, T: Stored, const UNIT: bool>(x: Row<'_, T, UNIT>, n: usize) -> f32 {
    let mut sums = [L::zero(); SUMS];
    let mut i = 0;
    while i + SUMS * L::LEN <= n {
        for (k, sum) in sums.iter_mut().enumerate() {
            // SAFETY: below n.
            *sum = sum.add(unsafe { x.load::<L>(i + k * L::LEN, L::LEN) });
        }
        i += SUMS * L::LEN;
    }
    while i < n {
        // SAFETY: below n.
        sums[0] = sums[0].add(unsafe { x.load::<L>(i, L::LEN.min(n - i)) });
        i += L::LEN;
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

/// The sum of the squares of the differences from `mean`, as [`sum`].
///
/// # Safety
/// The row has n readable elements.
#[inline(always)]
unsafe fn squares<L: Lanes, T: Stored, const UNIT: bool>(x: Row<'_, T, UNIT>, mean: f32, n: usize) -> f32 {
    let centre = L::splat(mean);
    let mut sums = [L::zero(); SUMS];
    let mut i = 0;
    while i + SUMS * L::LEN <= n {
        for (k, sum) in sums.iter_mut().enumerate() {
            // SAFETY: below n.
            let v = unsafe { x.load::<L>(i + k * L::LEN, L::LEN) }.sub(centre);
            *sum = v.mul_add(v, *sum);
        }
        i += SUMS * L::LEN;
    }
    while i < n {
        // SAFETY: below n. The lanes beyond hold the mean, and differ by nothing.
        let v = unsafe { x.load_or::<L>(i, L::LEN.min(n - i), mean) }.sub(centre);
        sums[0] = v.mul_add(v, sums[0]);
        i += L::LEN;
    }
    sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum()
}

/// `out = (x − mean) · factor · weight + bias`.
///
/// # Safety
/// All rows have n elements, out's writable.
#[inline(always)]
unsafe fn scale<L: Lanes, T: Stored, W: Stored, const UNIT: bool>(
    x: Row<'_, T, UNIT>,
    [mean, factor]: [f32; 2],
    weight: Option<Row<'_, W, UNIT>>,
    bias: Option<Row<'_, W, UNIT>>,
    out: Row<'_, T, UNIT>,
    n: usize,
) {
    let (mean, factor) = (L::splat(mean), L::splat(factor));
    let mut i = 0;
    while i < n {
        let count = L::LEN.min(n - i);
        // SAFETY: below n.
        unsafe {
            let mut v = x.load::<L>(i, count).sub(mean).mul(factor);
            if let Some(weight) = weight {
                v = v.mul(weight.load::<L>(i, count));
            }
            if let Some(bias) = bias {
                v = v.add(bias.load::<L>(i, count));
            }
            out.store(i, count, v);
        }
        i += L::LEN;
    }
}
