//! Numbers to codes, by scales that are given or found on the way.
//!
//! A row passes through pieces that stay in the first-level cache, blocks of several rows through a copy that stays
//! in the second; conversions are those of `simd::code`, and every operation is the contract's, so that all paths
//! write the same codes.

use super::activation::{as_magnitude, larger, largest, largest_magnitude, row_offset};
use super::dequantize::number_at;
use super::encode::{Rule, ask};
use crate::Isa;
use crate::elementwise::Exec;
use crate::pool::scratch;
use crate::rows::for_each_range;
use crate::simd::code::{Code, with_code};
use crate::simd::{Kernel, Lanes, PAST, dispatch};
use crate::value::Value;
use core::marker::PhantomData;
use core::ops::Range;
use portolan_ops::quant::{DynamicQuantizeSpec, QuantizeSpec};
use portolan_ops::{DType, QuantScheme, QuantSpec, ScaleKind, TensorSpec};

/// Columns of a piece.
const PIECE: usize = 1024;
/// Elements of blocks of several rows that are copied at once: two copies are half a second-level cache of 1 MiB.
const COPY: usize = 64 << 10;
/// A cache line.
const LINE: usize = 64;
/// Blocks among them, at most.
const MOST_BLOCKS: usize = 8;
/// Rows between what is copied and what is asked for: a part of a row is too short for the processor to foresee it.
const ROWS_AHEAD: usize = 2;

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
    let job = Job::new(exec.isa, spec.x(), quant, [x, offset], codes, scale.cast_mut());
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
        job.finish();
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
    let job = Job::new(exec.isa, spec.x(), quant, [x, core::ptr::null()], codes, scale);
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
                } else if rows.len() > 1 && rows.len().saturating_mul(block_k.min(k)) <= COPY {
                    job.row_of_blocks(block_row, rows);
                } else {
                    for column in 0..k.div_ceil(block_k) {
                        job.tile(block_row, column, rows.clone());
                    }
                }
            }
        }
        job.finish();
    });
}

/// What all tasks see: also what specs would have to be asked for in the innermost loops, where a call costs the
/// contents of all vector registers.
struct Job<'a> {
    isa: Isa,
    x: &'a TensorSpec,
    quant: &'a QuantSpec,
    found: Found,
    base: *const u8,
    codes: *mut u8,
    /// The first element of the codes, and elements from a row to the next.
    codes_at: usize,
    codes_step: usize,
    scale: Grid,
    /// Minima or zero points, if there are any.
    offset: Option<Grid>,
    /// Whether codes of blocks of several rows are written past the caches.
    past: bool,
}

// SAFETY: tasks read operands and write rows of codes and scales of their own.
unsafe impl Sync for Job<'_> {}

impl<'a> Job<'a> {
    fn new(
        isa: Isa,
        x: &'a TensorSpec,
        quant: &'a QuantSpec,
        [base, offset]: [*const u8; 2],
        codes: *mut u8,
        scale: *mut u8,
    ) -> Self {
        Self {
            isa,
            x,
            quant,
            found: Found::new(quant.scheme()),
            base,
            codes,
            codes_at: quant.codes().layout().offset(),
            codes_step: quant.codes().strides()[0],
            scale: Grid::new(quant.scale(), scale),
            offset: quant.offset().map(|spec| Grid::new(spec, offset.cast_mut())),
            past: isa != Isa::Portable
                && quant.codes().dtype().bytes_for(quant.n().saturating_mul(quant.k())) >= PAST,
        }
    }
}

/// A tensor with one entry a block.
#[derive(Clone, Copy)]
struct Grid {
    base: *mut u8,
    at: usize,
    steps: [usize; 2],
    dtype: DType,
}

impl Grid {
    fn new(spec: &TensorSpec, base: *mut u8) -> Self {
        let steps = [spec.strides()[0], spec.strides()[1]];
        Self { base, at: spec.layout().offset(), steps, dtype: spec.dtype() }
    }

    /// # Safety
    /// The entry exists.
    #[inline(always)]
    unsafe fn get(&self, row: usize, column: usize) -> f32 {
        let at = self.at + row * self.steps[0] + column * self.steps[1];
        // SAFETY: by contract.
        unsafe {
            match self.dtype {
                DType::F32 => self.base.cast::<f32>().add(at).read_unaligned(),
                dtype => number_at(dtype, self.base, at),
            }
        }
    }

    /// Writes a scale that was found.
    ///
    /// # Safety
    /// The entry exists and is the caller's.
    #[inline(always)]
    unsafe fn put(&self, row: usize, column: usize, scale: f32) {
        let at = self.at + row * self.steps[0] + column * self.steps[1];
        // SAFETY: by contract.
        unsafe {
            match self.dtype {
                // A power of two, or NaN: its exponent is its code.
                DType::E8M0 => *self.base.add(at) = (scale.to_bits() >> 23) as u8,
                _ => self.base.cast::<f32>().add(at).write_unaligned(scale),
            }
        }
    }
}

/// Where the scales of a piece come from.
#[derive(Clone, Copy)]
enum Scales<'a> {
    /// Their tensor.
    Given,
    /// The piece, which holds whole groups of one row; they are written to their tensor.
    Found,
    /// One for the whole piece.
    One(f32),
    /// One for each block of the piece.
    Each(&'a [f32]),
}

/// How the scale of a block follows from its largest magnitude: `QuantScheme::block_scale`, as far as it can be worked
/// out before.
#[derive(Clone, Copy)]
struct Found {
    top: f32,
    /// The exponent of `top`, where scales are powers of two.
    exponent: Option<i32>,
}

impl Found {
    fn new(scheme: &QuantScheme) -> Self {
        let top = scheme.symmetric_top();
        let exponent = (top.to_bits() >> 23) as i32 - 127;
        Self { top, exponent: (scheme.scale == ScaleKind::E8M0).then_some(exponent) }
    }

    /// `largest`: as [`as_magnitude`] gives it.
    #[inline(always)]
    fn scale(self, largest: f32) -> f32 {
        match self.exponent {
            None => largest / self.top,
            Some(_) if largest.is_nan() => f32::NAN,
            // A subnormal number has the exponent of code 0, and code 0 the topmost bit of a mantissa.
            Some(exponent) => match (largest.to_bits() >> 23) as i32 - exponent {
                code @ 1.. => f32::from_bits((code as u32) << 23),
                _ => f32::from_bits(1 << 22),
            },
        }
    }
}

impl Job<'_> {
    /// Ends a task.
    fn finish(&self) {
        if self.past {
            dispatch(self.isa, Finish);
        }
    }

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

    /// A row of blocks, each of several rows of x.
    ///
    /// # Safety
    /// The blocks exist and are the caller's; they have no more than [`COPY`] elements each.
    unsafe fn row_of_blocks(&self, block_row: usize, rows: Range<usize>) {
        let block_k = self.quant.scheme().block[1].min(self.quant.k().max(1));
        let columns = (COPY / (rows.len() * block_k)).clamp(1, MOST_BLOCKS) * block_k;
        let elements = 2 * columns * rows.len();
        scratch::with(elements * size_of::<f32>(), |memory| {
            let copies = memory.cast::<f32>();
            // SAFETY: it is as large as asked for. Lines of it are slices from here on.
            unsafe { copies.write_bytes(0, elements) };
            dispatch(self.isa, Blocks { job: self, block_row, rows, columns, block_k, copies });
        });
    }

    /// A block: once for its largest magnitude, once for its codes.
    ///
    /// # Safety
    /// The block exists and is the caller's.
    unsafe fn tile(&self, block_row: usize, column: usize, rows: Range<usize>) {
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
            let scale = self.found.scale(found);
            self.scale.put(block_row, column, scale);
            for row in rows {
                for at in (start..end).step_by(PIECE) {
                    let piece = self.fetch(row, at, &mut buf[..PIECE.min(end - at)]);
                    self.encode(row, at, piece, Scales::One(scale));
                }
            }
        }
    }

    /// Writes the codes of a piece that begins at column `start`.
    ///
    /// # Safety
    /// Its codes exist and are the caller's, and so are its scales where they are found.
    unsafe fn encode(&self, row: usize, start: usize, x: &[f32], scales: Scales<'_>) {
        with_code!(self.quant.scheme().code, C => {
            dispatch(self.isa, Encode::<C> { job: self, row, start, x, scales, code: PhantomData })
        }, _ => ());
    }
}

/// Orders codes written past the caches before what the thread does next.
struct Finish;

impl Kernel for Finish {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        L::finish_past();
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

/// A row of blocks of several rows of x. These lie too far apart, and often a power of two, for a cache to keep them
/// from the search for the largest magnitude to the codes: some blocks at a time are copied, each row of them between
/// the codes of two rows of those before, so that memory and arithmetic are busy at the same time.
struct Blocks<'a> {
    job: &'a Job<'a>,
    block_row: usize,
    rows: Range<usize>,
    /// Whole blocks that are copied at once, and columns of a block.
    columns: usize,
    block_k: usize,
    /// Two copies.
    copies: *mut f32,
}

impl Kernel for Blocks<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (job, k, rows) = (self.job, self.job.quant.k(), self.rows.len());
        let mut found = [L::splat_int(0); MOST_BLOCKS];
        let mut copy = self.copies;
        let mut other = self.copies.wrapping_add(rows * self.columns);
        // SAFETY: rows and columns exist, and copies hold as many; codes and scales are this task's.
        unsafe {
            for i in 0..rows {
                self.collect::<L>(i, 0, self.columns.min(k), copy, &mut found);
            }
            for start in (0..k).step_by(self.columns) {
                let width = self.columns.min(k - start);
                let mut scales = [0f32; MOST_BLOCKS];
                for (i, scale) in scales.iter_mut().enumerate().take(width.div_ceil(self.block_k)) {
                    *scale = job.found.scale(as_magnitude(L::largest_int(found[i])));
                    job.scale.put(self.block_row, start / self.block_k + i, *scale);
                }
                found = [L::splat_int(0); MOST_BLOCKS];
                let next = start + width;
                for i in 0..rows {
                    if next < k {
                        self.collect::<L>(i, next, self.columns.min(k - next), other, &mut found);
                    }
                    let x = core::slice::from_raw_parts(copy.add(i * self.columns), width);
                    let (row, scales) = (self.rows.start + i, Scales::Each(&scales));
                    with_code!(job.quant.scheme().code, C => {
                        L::apart(Encode::<C> { job, row, start, x, scales, code: PhantomData })
                    }, _ => ());
                }
                (copy, other) = (other, copy);
            }
        }
    }
}

impl Blocks<'_> {
    /// Copies columns `start .. start + width` of row `i` as f32; `found` are the largest magnitudes so far.
    ///
    /// # Safety
    /// They exist, and the copy has room for them.
    #[inline(always)]
    unsafe fn collect<L: Lanes>(
        &self,
        i: usize,
        start: usize,
        width: usize,
        copy: *mut f32,
        found: &mut [L::Int; MOST_BLOCKS],
    ) {
        let x = self.job.x;
        let stride = x.strides().last().copied().unwrap_or(1);
        let place = |i: usize| row_offset(x, self.rows.start + i) + start * stride;
        if i + ROWS_AHEAD < self.rows.len() && stride == 1 {
            let size = x.dtype().bits() as usize / 8;
            let from = self.job.base.wrapping_add(place(i + ROWS_AHEAD) * size);
            (0..width * size).step_by(64).for_each(|at| ask::<false>(from.wrapping_add(at)));
        }
        // SAFETY: by contract.
        unsafe {
            let line = copy.add(i * self.columns);
            let line = core::slice::from_raw_parts_mut(line, width);
            f32::load::<L>(x.dtype(), self.job.base, place(i), stride, line);
            for (found, part) in found.iter_mut().zip(line.chunks(self.block_k)) {
                *found = larger::<L>(*found, part);
            }
        }
    }
}

/// Codes on their way past the caches, which is taken by whole lines.
#[repr(align(64))]
struct Piece([u8; PIECE]);

/// Columns `start .. start + x.len()` of a row to codes.
struct Encode<'a, C> {
    job: &'a Job<'a>,
    row: usize,
    start: usize,
    x: &'a [f32],
    scales: Scales<'a>,
    code: PhantomData<C>,
}

impl<C: Code> Kernel for Encode<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { job, row, start, x, scales, .. } = self;
        let place = job.codes_at + row * job.codes_step + start;
        let bits = C::DTYPE.bits() as usize;
        let (to, bytes) = (job.codes.wrapping_add(place * bits / 8), x.len() * bits / 8);
        let lines = [place * bits % 8, to as usize % LINE, bytes % LINE] == [0; 3];
        // SAFETY: by the promise of `Job::encode`; the piece has room for as many bytes.
        unsafe {
            // Rows on their own are no faster by it.
            let blocks = matches!(scales, Scales::Each(_));
            if !job.past || !blocks || !lines || bytes > PIECE {
                return job.encode_row::<L, C>([row, start], x, scales, job.codes, place);
            }
            let mut piece = Piece([0; PIECE]);
            let from = piece.0.as_mut_ptr();
            job.encode_row::<L, C>([row, start], x, scales, from, 0);
            for at in (0..bytes).step_by(L::LEN * size_of::<f32>()) {
                L::load(from.add(at).cast()).store_past(to.add(at).cast());
            }
        }
    }
}

impl Job<'_> {
    /// As [`Job::encode`], inside a kernel, to element `line` of `codes` and on.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn encode_row<L: Lanes, C: Code>(
        &self,
        [row, start]: [usize; 2],
        x: &[f32],
        scales: Scales<'_>,
        codes: *mut u8,
        line: usize,
    ) {
        let scheme = self.quant.scheme();
        let (low, high) = scheme.code_range();
        let low = if matches!(scales, Scales::Given) { low } else { -high };
        let power = scheme.scale == ScaleKind::E8M0;
        let mut rule =
            Rule { offset: scheme.offset, scale: 0.0, power, shift: 0.0, low: low as f32, high: high as f32 };
        let (block_row, columns, first) = (row / scheme.block[0], scheme.block[1], start / scheme.block[1]);
        let (mut group, mut done) = (first, 0);
        // To the end of the group that the piece begins in.
        let mut end = (first + 1).saturating_mul(columns) - start;
        while done < x.len() {
            let part = &x[done..x.len().min(end)];
            // SAFETY: groups and codes exist and are this task's.
            unsafe {
                rule.scale = match scales {
                    Scales::One(scale) => scale,
                    Scales::Each(scales) => scales[group - first],
                    Scales::Found => {
                        let scale = self.found.scale(largest::<L>(part));
                        self.scale.put(block_row, group, scale);
                        scale
                    }
                    Scales::Given => {
                        if let Some(offset) = &self.offset {
                            rule.shift = offset.get(block_row, group);
                        }
                        self.scale.get(block_row, group)
                    }
                };
                rule.encode::<L, C>(part, codes, line + done);
            }
            done += part.len();
            group += 1;
            end = end.saturating_add(columns);
        }
    }
}
