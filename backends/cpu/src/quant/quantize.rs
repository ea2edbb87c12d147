//! Numbers to codes, by scales that are given or found on the way.
//!
//! Rows pass through pieces that stay in the first-level cache. Where scales are found, whole blocks are read along
//! their rows, as memory is fastest, and again from the cache that holds them. Conversions are those of
//! `simd::code`, and every operation is the contract's, so that all paths write the same codes.

use super::activation::larger;
use super::dequantize::number_at;
use super::encode::{Rule, is_usual};
use crate::Isa;
use crate::elementwise::Exec;
use crate::rows::{PIECE, Room, Rows, for_each_range};
use crate::simd::code::{Code, with_code};
use crate::simd::{Kernel, Lanes, PAST, dispatch};
use crate::value::Value;
use core::marker::PhantomData;
use core::ops::Range;
use portolan_ops::quant::{DynamicQuantizeSpec, QuantizeSpec};
use portolan_ops::{DType, QuantScheme, QuantSpec, ScaleKind, TensorSpec};

/// Elements of blocks of several rows that a thread passes twice: 512 KiB, which a second-level cache of 1 MiB keeps.
const CACHED: usize = 128 << 10;
/// Blocks among them, at most.
const MOST_BLOCKS: usize = 64;
/// A cache line.
const LINE: usize = 64;

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
        dispatch(exec.isa, ByGiven { job, rows });
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
    let (n, k, block_n) = (quant.n(), quant.k(), quant.scheme().block[0]);
    // A task has whole rows of blocks, so that a scale is one task's.
    let rows_of_blocks = n.div_ceil(block_n);
    for_each_range(exec.team, exec.max_threads, rows_of_blocks, k.saturating_mul(block_n), &|block_rows| {
        dispatch(exec.isa, ByFound { job, block_rows });
    });
}

/// What all tasks see: also what specs would have to be asked for in the innermost loops, where a call costs the
/// contents of all vector registers.
struct Job<'a> {
    quant: &'a QuantSpec,
    x: Rows,
    found: Found,
    codes: *mut u8,
    /// The first element of the codes, and elements from a row to the next.
    codes_at: usize,
    codes_step: usize,
    scale: Grid,
    /// Minima or zero points, if there are any.
    offset: Option<Grid>,
    /// Whether codes are written past the caches.
    past: bool,
}

// SAFETY: tasks read operands and write rows of codes and scales of their own.
unsafe impl Sync for Job<'_> {}

impl<'a> Job<'a> {
    fn new(
        isa: Isa,
        x: &TensorSpec,
        quant: &'a QuantSpec,
        [base, offset]: [*const u8; 2],
        codes: *mut u8,
        scale: *mut u8,
    ) -> Self {
        Self {
            quant,
            x: Rows::new(x, base),
            found: Found::new(quant.scheme()),
            codes,
            codes_at: quant.codes().layout().offset(),
            codes_step: quant.codes().strides()[0],
            scale: Grid::new(quant.scale(), scale),
            offset: quant.offset().map(|spec| Grid::new(spec, offset.cast_mut())),
            // Where a block has one row, it is no faster by it.
            past: isa != Isa::Portable
                && quant.scheme().block[0] > 1
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

    /// Writes scales that were found, to columns from `column` on.
    ///
    /// # Safety
    /// The entries exist and are the caller's.
    #[inline(always)]
    unsafe fn put<L: Lanes>(&self, row: usize, column: usize, scales: &[f32]) {
        let at = self.at + row * self.steps[0] + column * self.steps[1];
        // SAFETY: by contract.
        unsafe {
            match self.dtype {
                // Powers of two, or NaN: an exponent is its code.
                DType::E8M0 => {
                    for (i, scale) in scales.iter().enumerate() {
                        *self.base.add(at + i * self.steps[1]) = (scale.to_bits() >> 23) as u8;
                    }
                }
                dtype => f32::store::<L>(dtype, self.base, at, self.steps[1], scales),
            }
        }
    }
}

/// Where the scales of a piece come from.
#[derive(Clone, Copy)]
enum Scales<'a> {
    /// Their tensor.
    Given,
    /// One for each block of the piece.
    Found(Blocks<'a>),
}

/// Scales of blocks that follow each other.
#[derive(Clone, Copy)]
struct Blocks<'a> {
    scales: &'a [f32],
    reciprocals: &'a [f32],
    /// Whether all of them are.
    usual: bool,
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

    /// `largest`: bits of magnitudes, whose order is that of numbers with infinities and NaN above all. NaN for what
    /// is no finite number.
    #[inline(always)]
    fn scales<L: Lanes>(self, largest: L::Int) -> L {
        let size = L::from_bits(largest);
        let scale = match self.exponent {
            None => size.div(L::splat(self.top)),
            // A subnormal number has the exponent of code 0, and code 0 the topmost bit of a mantissa.
            Some(exponent) => {
                let code = L::sub_int(L::shr_int::<23>(largest), L::splat_int(exponent));
                let power = L::from_bits(L::shl_int::<23>(code));
                L::select(L::zero().lt(L::from_int(code)), power, L::from_bits(L::splat_int(1 << 22)))
            }
        };
        L::select(size.lt(L::splat(f32::INFINITY)), scale, L::splat(f32::NAN))
    }
}

/// Columns cut into pieces of `step`: where each begins, and how many it has.
#[inline(always)]
fn pieces(columns: Range<usize>, step: usize) -> impl Iterator<Item = (usize, usize)> {
    columns.clone().step_by(step).map(move |at| (at, step.min(columns.end - at)))
}

/// Rows to codes by scales from their tensor.
struct ByGiven<'a> {
    job: &'a Job<'a>,
    rows: Range<usize>,
}

impl Kernel for ByGiven<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let job = self.job;
        let mut room = Room::new();
        for row in self.rows {
            for (start, len) in pieces(0..job.quant.k(), PIECE) {
                // SAFETY: row and columns exist; a row of codes is one task's.
                unsafe { job.encode::<L>(row, start, len, Scales::Given, &mut room) };
            }
        }
        job.finish::<L>();
    }
}

/// Rows of blocks to scales and codes.
struct ByFound<'a> {
    job: &'a Job<'a>,
    block_rows: Range<usize>,
}

impl Kernel for ByFound<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let job = self.job;
        let (n, k, [block_n, block_k]) = (job.quant.n(), job.quant.k(), job.quant.scheme().block);
        let block_k = block_k.min(k.max(1));
        // Pieces of whole blocks, or blocks of several pieces.
        let step = if block_k <= PIECE { (PIECE / block_k).min(MOST_BLOCKS) * block_k } else { PIECE };
        let mut largest = [L::splat_int(0); MOST_BLOCKS];
        let (mut scales, mut reciprocals) = ([0f32; MOST_BLOCKS], [0f32; MOST_BLOCKS]);
        let mut room = Room::new();
        for block_row in self.block_rows {
            let first = block_row * block_n;
            let rows = first..n.min(first.saturating_add(block_n));
            let most = if block_k > PIECE {
                block_k
            } else if rows.len() == 1 {
                step
            } else {
                (CACHED / rows.len()).min(MOST_BLOCKS * block_k).max(step) / step * step
            };
            for (start, len) in pieces(0..k, most) {
                let (columns, first, blocks) = (start..start + len, start / block_k, len.div_ceil(block_k));
                largest[..blocks].fill(L::splat_int(0));
                // Behind the last block, a number like any other.
                largest[blocks..blocks.next_multiple_of(L::LEN)].fill(L::splat(1.0).bits());
                let mut usual = true;
                // SAFETY: rows and columns exist; codes and scales are this task's.
                unsafe {
                    for row in rows.clone() {
                        for (at, len) in pieces(columns.clone(), step) {
                            let x = job.x.row(row).read::<L>(at, len, &mut room);
                            let x = core::slice::from_raw_parts(x, len);
                            let largest = largest[at / block_k - first..].iter_mut();
                            // A length that is known is a loop less.
                            if block_k == 2 * L::LEN && len.is_multiple_of(block_k) {
                                for (largest, part) in largest.zip(x.chunks_exact(2 * L::LEN)) {
                                    *largest = larger::<L>(*largest, part);
                                }
                            } else {
                                for (largest, part) in largest.zip(x.chunks(block_k)) {
                                    *largest = larger::<L>(*largest, part);
                                }
                            }
                        }
                    }
                    for at in (0..blocks).step_by(L::LEN) {
                        let largest = L::largest_of_each(largest[at..].as_ptr());
                        let scale = job.found.scales::<L>(largest);
                        scale.store(scales[at..].as_mut_ptr());
                        L::splat(1.0).div(scale).store(reciprocals[at..].as_mut_ptr());
                        usual &= is_usual(scale);
                    }
                    job.scale.put::<L>(block_row, first, &scales[..blocks]);
                    for row in rows.clone() {
                        for (at, len) in pieces(columns.clone(), step) {
                            let block = at / block_k - first;
                            let (scales, reciprocals) = (&scales[block..], &reciprocals[block..]);
                            let found = Scales::Found(Blocks { scales, reciprocals, usual });
                            job.encode::<L>(row, at, len, found, &mut room);
                        }
                    }
                }
            }
        }
        job.finish::<L>();
    }
}

impl Job<'_> {
    /// Writes the codes of columns `start .. start + len` of a row: a piece.
    ///
    /// # Safety
    /// They exist and are the caller's.
    #[inline(always)]
    unsafe fn encode<L: Lanes>(
        &self,
        row: usize,
        start: usize,
        len: usize,
        scales: Scales<'_>,
        room: &mut Room,
    ) {
        // SAFETY: passed on.
        let x = unsafe { core::slice::from_raw_parts(self.x.row(row).read::<L>(start, len, room), len) };
        with_code!(self.quant.scheme().code, C => {
            L::apart(Encode::<C> { job: self, row, start, x, scales, code: PhantomData })
        }, _ => ());
    }

    /// Orders codes written past the caches before what the thread does next.
    #[inline(always)]
    fn finish<L: Lanes>(&self) {
        if self.past {
            L::finish_past();
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
            if !job.past || !lines || bytes > PIECE {
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
    /// As [`Job::encode`], of numbers that are read, to element `line` of `codes` and on.
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
        let mut rule = Rule {
            offset: scheme.offset,
            scale: 0.0,
            reciprocal: 0.0,
            power,
            shift: 0.0,
            low: low as f32,
            high: high as f32,
        };
        if let Scales::Found(Blocks { scales, reciprocals, usual: true }) = scales {
            let columns = scheme.block[1].min(x.len());
            let whole = [columns, x.len()].iter().all(|n| n.is_multiple_of(L::LEN));
            if whole && (!C::HALF || line.is_multiple_of(2)) {
                // A macro, since a closure would be compiled without the instructions of the kernel.
                macro_rules! encode {
                    ($parts:expr) => {
                        for (i, (part, found)) in $parts.zip(scales.iter().zip(reciprocals)).enumerate() {
                            (rule.scale, rule.reciprocal) = (*found.0, *found.1);
                            // SAFETY: the codes exist and are this task's.
                            unsafe {
                                match power {
                                    true => rule.whole::<L, C, true, true>(part, codes, line + i * columns),
                                    false => rule.whole::<L, C, false, true>(part, codes, line + i * columns),
                                };
                            }
                        }
                    };
                }
                // A length that is known is a loop less.
                match columns == 2 * L::LEN && x.len().is_multiple_of(columns) {
                    true => encode!(x.chunks_exact(2 * L::LEN)),
                    false => encode!(x.chunks(columns.max(1))),
                }
                return;
            }
        }
        let (block_row, columns, first) = (row / scheme.block[0], scheme.block[1], start / scheme.block[1]);
        let (mut group, mut done) = (first, 0);
        // To the end of the group that the piece begins in.
        let mut end = (first + 1).saturating_mul(columns) - start;
        while done < x.len() {
            let part = &x[done..x.len().min(end)];
            // SAFETY: groups and codes exist and are this task's.
            unsafe {
                rule.scale = match scales {
                    Scales::Found(blocks) => blocks.scales[group - first],
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
