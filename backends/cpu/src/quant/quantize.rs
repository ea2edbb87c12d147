//! Numbers to codes, by scales that are given or found on the way.
//!
//! A row passes through pieces that stay in the first-level cache; conversions are those of `simd::code`, and every
//! operation is the contract's, so that all paths write the same codes.

use super::activation::{largest, largest_magnitude, row_offset};
use super::dequantize::number;
use crate::Isa;
use crate::elementwise::Exec;
use crate::elementwise::block::Value;
use crate::rows::for_each_range;
use crate::simd::code::{self, Code, with_code};
use crate::simd::{Kernel, Lanes, dispatch};
use core::marker::PhantomData;
use portolan_ops::codec::{Overflow, e8m0_code};
use portolan_ops::quant::{DynamicQuantizeSpec, QuantizeSpec};
use portolan_ops::{DType, Offset, QuantSpec, TensorSpec};

/// Columns of a piece.
const PIECE: usize = 1024;

/// Quantizes by given scales.
///
/// # Safety
/// The pointers are the base addresses of the spec's operands, `offset` null where there is none; the codes overlap
/// no operand, and nothing else touches them meanwhile.
pub(crate) unsafe fn quantize(
    exec: Exec<'_>,
    spec: &QuantizeSpec,
    x: *const u8,
    scale: *const u8,
    offset: *const u8,
    codes: *mut u8,
) {
    let quant = spec.quant();
    let job = Job { isa: exec.isa, x: spec.x(), quant, base: x, codes, scale: scale.cast_mut(), offset };
    let job = &job;
    for_each_range(exec.team, exec.max_threads, quant.n(), quant.k(), &|rows| {
        let mut buf = [0f32; PIECE];
        for row in rows {
            for start in (0..quant.k()).step_by(PIECE) {
                let len = PIECE.min(quant.k() - start);
                // SAFETY: row and columns exist; a row of codes is one task's.
                unsafe { job.encode(row, start, job.fetch(row, start, &mut buf[..len]), Scales::Given) };
            }
        }
    });
}

/// Finds scales and quantizes by them.
///
/// # Safety
/// The pointers are the base addresses of the spec's operands; the outputs overlap nothing, and nothing else touches
/// them meanwhile.
pub(crate) unsafe fn dynamic_quantize(
    exec: Exec<'_>,
    spec: &DynamicQuantizeSpec,
    x: *const u8,
    codes: *mut u8,
    scale: *mut u8,
) {
    let quant = spec.quant();
    let offset = core::ptr::null();
    let job = Job { isa: exec.isa, x: spec.x(), quant, base: x, codes, scale, offset };
    let job = &job;
    let (n, k, [block_n, block_k]) = (quant.n(), quant.k(), quant.scheme().block);
    // A task has whole rows of blocks, so that a scale is one task's.
    let rows_of_blocks = n.div_ceil(block_n);
    for_each_range(exec.team, exec.max_threads, rows_of_blocks, k.saturating_mul(block_n), &|range| {
        for block_row in range {
            let first = block_row * block_n;
            let rows = first..n.min(first.saturating_add(block_n));
            // SAFETY: rows and blocks exist and are this task's.
            unsafe {
                if rows.len() == 1 && block_k.min(k) <= PIECE {
                    job.row_of_groups(first);
                } else {
                    for column in 0..k.div_ceil(block_k) {
                        job.tile(block_row, column, rows.clone());
                    }
                }
            }
        }
    });
}

/// What all tasks see.
struct Job<'a> {
    isa: Isa,
    x: &'a TensorSpec,
    quant: &'a QuantSpec,
    base: *const u8,
    codes: *mut u8,
    scale: *mut u8,
    offset: *const u8,
}

// SAFETY: tasks read operands and write rows of codes and scales of their own.
unsafe impl Sync for Job<'_> {}

/// Where the scales of a piece come from.
#[derive(Clone, Copy)]
enum Scales {
    /// Their tensor.
    Given,
    /// The piece, which holds whole groups of one row; they are written to their tensor.
    Found,
    /// One for the whole piece.
    One(f32),
}

impl Job<'_> {
    /// Columns `start ..` of a row as f32: where they lie, or copied into `buf`.
    ///
    /// # Safety
    /// They exist.
    unsafe fn fetch<'b>(&self, row: usize, start: usize, buf: &'b mut [f32]) -> &'b [f32] {
        let stride = self.x.strides().last().copied().unwrap_or(1);
        let place = row_offset(self.x, row) + start * stride;
        if self.x.dtype() == DType::F32 && stride == 1 {
            // SAFETY: the elements lie within x.
            return unsafe { core::slice::from_raw_parts(self.base.cast::<f32>().add(place), buf.len()) };
        }
        dispatch(self.isa, Fetch { dtype: self.x.dtype(), base: self.base, place, stride, buf });
        buf
    }

    /// A row whose groups are not longer than a piece.
    ///
    /// # Safety
    /// The row exists and is the caller's.
    unsafe fn row_of_groups(&self, row: usize) {
        let k = self.quant.k();
        let group = self.quant.scheme().block[1].min(k);
        let step = PIECE / group * group;
        let mut buf = [0f32; PIECE];
        for start in (0..k).step_by(step) {
            let len = step.min(k - start);
            // SAFETY: passed on; the piece has whole groups but for the last of the row.
            unsafe { self.encode(row, start, self.fetch(row, start, &mut buf[..len]), Scales::Found) };
        }
    }

    /// A block: once for its largest magnitude, once for its codes.
    ///
    /// # Safety
    /// The block exists and is the caller's.
    unsafe fn tile(&self, block_row: usize, column: usize, rows: core::ops::Range<usize>) {
        let block_k = self.quant.scheme().block[1];
        let start = column * block_k;
        let end = self.quant.k().min(start.saturating_add(block_k));
        let mut buf = [0f32; PIECE];
        let mut found = 0f32;
        // SAFETY: passed on.
        unsafe {
            for row in rows.clone() {
                for at in (start..end).step_by(PIECE) {
                    let piece = self.fetch(row, at, &mut buf[..PIECE.min(end - at)]);
                    let size = largest_magnitude(self.isa, piece);
                    // Once NaN, always NaN.
                    found = if found.is_nan() || size.is_nan() { f32::NAN } else { found.max(size) };
                }
            }
            let scale = self.quant.scheme().block_scale(found);
            self.write_scale(block_row, column, scale);
            for row in rows {
                for at in (start..end).step_by(PIECE) {
                    let piece = self.fetch(row, at, &mut buf[..PIECE.min(end - at)]);
                    self.encode(row, at, piece, Scales::One(scale));
                }
            }
        }
    }

    /// # Safety
    /// The entry exists and is the caller's.
    #[inline(always)]
    unsafe fn write_scale(&self, block_row: usize, column: usize, scale: f32) {
        let spec = self.quant.scale();
        let at = spec.layout().offset() + block_row * spec.strides()[0] + column * spec.strides()[1];
        // SAFETY: by contract.
        unsafe {
            match spec.dtype() {
                DType::E8M0 => *self.scale.add(at) = e8m0_code(f64::from(scale)),
                _ => self.scale.cast::<f32>().add(at).write_unaligned(scale),
            }
        }
    }

    /// Writes the codes of a piece that begins at column `start`.
    ///
    /// # Safety
    /// Its codes exist and are the caller's, and so are its scales where they are found.
    unsafe fn encode(&self, row: usize, start: usize, piece: &[f32], scales: Scales) {
        with_code!(self.quant.scheme().code, C => {
            dispatch(self.isa, Encode::<C> { job: self, row, start, piece, scales, code: PhantomData })
        }, _ => ());
    }
}

/// Any element type and stride to f32.
struct Fetch<'a> {
    dtype: DType,
    base: *const u8,
    place: usize,
    stride: usize,
    buf: &'a mut [f32],
}

impl Kernel for Fetch<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        // SAFETY: the elements exist, by the promise of `Job::fetch`.
        unsafe { f32::load::<L>(self.dtype, self.base, self.place, self.stride, self.buf) }
    }
}

struct Encode<'a, C> {
    job: &'a Job<'a>,
    row: usize,
    start: usize,
    piece: &'a [f32],
    scales: Scales,
    code: PhantomData<C>,
}

impl<C: Code> Kernel for Encode<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (job, scheme) = (self.job, *self.job.quant.scheme());
        let spec = job.quant.codes();
        let line = spec.layout().offset() + self.row * spec.strides()[0];
        let block_row = self.row / scheme.block[0];
        let (low, high) = scheme.code_range();
        let symmetric = !matches!(self.scales, Scales::Given);
        let low = if symmetric { -high } else { low };
        let mut done = 0;
        while done < self.piece.len() {
            let column = self.start + done;
            let group = column / scheme.block[1];
            let left = (group + 1).saturating_mul(scheme.block[1]) - column;
            let part = &self.piece[done..self.piece.len().min(done.saturating_add(left))];
            let mut offset = 0.0;
            let scale = match self.scales {
                Scales::One(scale) => scale,
                Scales::Found => {
                    let scale = scheme.block_scale(largest::<L>(part));
                    // SAFETY: the group is this task's.
                    unsafe { job.write_scale(block_row, group, scale) };
                    scale
                }
                Scales::Given => {
                    if let Some(spec) = job.quant.offset() {
                        // SAFETY: the entry exists.
                        offset = unsafe { number(spec, job.offset, block_row, group) };
                    }
                    // SAFETY: the entry exists.
                    unsafe { number(job.quant.scale(), job.scale, block_row, group) }
                }
            };
            let rule =
                Rule { offset: scheme.offset, scale, shift: offset, low: low as f32, high: high as f32 };
            for (i, lanes) in part.chunks(L::LEN).enumerate() {
                // SAFETY: the part is as long as what is loaded; its codes exist and are this task's.
                unsafe {
                    let x = L::load_partial(lanes.as_ptr(), lanes.len());
                    let at = line + column + i * L::LEN;
                    code::store::<L, C>(job.codes, at, lanes.len(), rule.apply::<L>(x), Overflow::Saturate);
                }
            }
            done += part.len();
        }
    }
}

/// How numbers of one block become codes.
#[derive(Clone, Copy)]
struct Rule {
    offset: Offset,
    scale: f32,
    /// Minimum or zero point.
    shift: f32,
    low: f32,
    high: f32,
}

impl Rule {
    /// As `QuantScheme::code_of`, less the rounding that the store does.
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L) -> L {
        if self.scale == 0.0 || self.scale.is_nan() {
            return L::zero();
        }
        let (scale, shift) = (L::splat(self.scale), L::splat(self.shift));
        // Bounds come first, so that NaN stays.
        let between = |q: L, low: f32, high: f32| L::splat(high).min(L::splat(low).max(q));
        match self.offset {
            Offset::None => between(x.div(scale), self.low, self.high),
            Offset::Min => between(x.sub(shift).div(scale), self.low, self.high),
            // Clamped before the zero point is added: then the quotient is small enough to be rounded.
            Offset::ZeroPoint => {
                let q = between(x.div(scale), self.low - self.shift, self.high - self.shift);
                q.round().add(shift)
            }
        }
    }
}
