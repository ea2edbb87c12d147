//! The loops around the tiles: rows in chunks, strips as tasks, every strip packed already or packed on the fly.
//!
//! Tasks are whole strips, and every result is computed by one task in one order: the number of threads changes no
//! bit.

use super::activation::{Int8Rows, for_tiles, read_row, replace_by_codes, row_offset, write_f32};
use super::float::{
    FloatTile, PANEL_COLUMNS, SINGLE_STRIPS, has_single_row, panel, scales_apart, single_row,
    tile as float_tile,
};
use super::int8::{Kernels, StripRef, TileRef};
use super::panel::{expand, panel_len};
use super::strip::{BLOCK, QuantParts, ROWS, StripLayout, TAG, pack_strip, unpack_strip};
use crate::pool::scratch;
use crate::{Isa, Team};
use half::{bf16, f16};
use portolan_core::sync::{Mutex, lock};
use portolan_ops::kernel::Activation;
use portolan_ops::{
    ActQuant, DType, LinearSpec, Offset, OpError, PackedContent, PackedSpec, PrepackSpec, QuantSpec, Result,
    UnpackSpec, WeightSpec,
};

/// Where a weight's bytes are.
#[derive(Clone, Copy)]
pub(crate) enum WeightData {
    /// The tensors of a quantized weight.
    Quant(QuantParts),
    /// The bytes of a packed one.
    Packed(*const u8),
}

/// Elements of activations that are prepared at once: as int8 they fit a second-level cache of 1 MiB and more.
const CHUNK_ELEMENTS: usize = 800_000;
/// Bytes of packed weight that a task reads at least (times rows of tiles), so that handing it out costs little.
const TASK_BYTES: usize = 24 << 10;
/// Tasks of a single row for each thread, about: enough to share out evenly, few enough that most strips have some
/// before them.
const SINGLE_ROW_TASKS: usize = 8;
/// Elements of activations above which rows are prepared by several threads.
const PARALLEL_ELEMENTS: usize = 16 << 10;

/// Raw pointers that tasks share; what each task touches is its own.
#[derive(Clone, Copy)]
struct Shared<T>(T);
// SAFETY: tasks only read through these, or write to disjoint rows and strips.
unsafe impl<T> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Shared<T> {}
impl<T: Copy> Shared<T> {
    /// Taken through a method, so that closures capture the whole and not the pointer inside.
    fn get(&self) -> T {
        self.0
    }
}

/// Bytes and name of the packed form of a weight; `None` for a dense one, which has no form here.
///
/// # Errors
/// `Shape` when the form is too large to address.
pub(crate) fn packed_form(
    content: PackedContent,
    n: usize,
    k: usize,
) -> Result<Option<(usize, &'static str)>> {
    match content {
        PackedContent::Dense(_) => Ok(None),
        PackedContent::Quant(scheme) => Ok(Some((StripLayout::new(&scheme, n, k)?.bytes(), TAG))),
    }
}

fn quant_of<'a>(op: &'static str, weight: &'a WeightSpec) -> Result<&'a QuantSpec> {
    match weight {
        WeightSpec::Quant(quant) => Ok(quant),
        _ => Err(OpError::internal(op, "a weight without codes reached the quantized kernels")),
    }
}

fn layout_of(op: &'static str, packed: &PackedSpec) -> Result<StripLayout> {
    let PackedContent::Quant(scheme) = packed.content() else {
        return Err(OpError::internal(op, "a packed weight without codes reached the quantized kernels"));
    };
    let layout = StripLayout::new(&scheme, packed.n(), packed.k())?;
    if packed.tag() != TAG || packed.bytes().numel() != layout.bytes() {
        let (tag, bytes) = (packed.tag(), packed.bytes().numel());
        let what =
            format!("is {bytes} bytes of form {tag}, expected {} of {TAG}; prepack it here", layout.bytes());
        return Err(OpError::attribute(op, "packed", what));
    }
    Ok(layout)
}

/// Packs a quantized weight.
///
/// # Errors
/// `Data` for a code out of its range, `Attribute` for a form that is not this backend's.
///
/// # Safety
/// `parts` are the tensors of the spec's weight, `packed` the start of its packed bytes.
pub(crate) unsafe fn prepack(
    team: &Team,
    max_threads: usize,
    spec: &PrepackSpec,
    parts: QuantParts,
    packed: *mut u8,
) -> Result<()> {
    let quant = quant_of("prepack", spec.weight())?;
    let layout = layout_of("prepack", spec.packed())?;
    let shared = Shared((parts, packed));
    let fault = Mutex::new(None);
    team.run_with(layout.strips(), max_threads, &|strip| {
        let (parts, packed) = shared.get();
        // SAFETY: strips are disjoint in the packed bytes.
        let done =
            unsafe { pack_strip(&layout, quant, &parts, strip, packed.add(strip * layout.strip_bytes)) };
        report(&fault, done);
    });
    taken(fault)
}

/// Turns a packed weight back.
///
/// # Errors
/// `Attribute` for a form that is not this backend's.
///
/// # Safety
/// `packed` is the start of the packed bytes, `parts` the writable tensors of the spec's weight.
pub(crate) unsafe fn unpack(
    team: &Team,
    max_threads: usize,
    spec: &UnpackSpec,
    packed: *const u8,
    parts: QuantParts,
) -> Result<()> {
    let quant = quant_of("unpack", spec.weight())?;
    let layout = layout_of("unpack", spec.packed())?;
    let shared = Shared((parts, packed));
    // Strips that share a block of scales write the same entries, so they belong to one task.
    let strips = layout.scheme.block[0].div_ceil(ROWS).max(1);
    let aligned = layout.scheme.block[0].is_multiple_of(ROWS) || ROWS.is_multiple_of(layout.scheme.block[0]);
    let per_task = if aligned { strips } else { layout.strips().max(1) };
    team.run_with(layout.strips().div_ceil(per_task), max_threads, &|task| {
        let (parts, packed) = shared.get();
        for strip in task * per_task..((task + 1) * per_task).min(layout.strips()) {
            // SAFETY: strips are disjoint in the codes, tasks in the scales.
            unsafe { unpack_strip(&layout, quant, &parts, strip, packed.add(strip * layout.strip_bytes)) };
        }
    });
    Ok(())
}

fn report(fault: &Mutex<Option<OpError>>, done: Result<()>) {
    if let Err(error) = done {
        lock(fault).get_or_insert(error);
    }
}

fn taken(fault: Mutex<Option<OpError>>) -> Result<()> {
    match lock(&fault).take() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// What all tasks of a call see.
struct Call<'a> {
    max_threads: usize,
    isa: Isa,
    spec: &'a LinearSpec,
    layout: StripLayout,
    quant: Option<&'a QuantSpec>,
    weight: WeightData,
    x: *const u8,
    bias: *const u8,
    out: *mut u8,
    /// Distance of rows of the result, where tiles may write f32 straight into it.
    direct: Option<usize>,
    fault: Mutex<Option<OpError>>,
}

// SAFETY: tasks read operands and write disjoint columns of the result.
unsafe impl Sync for Call<'_> {}

/// Runs a linear layer with a quantized weight, packed or not.
///
/// # Errors
/// `Internal` for a dense weight, `Attribute` for a packed form that is not this backend's, `Data` for a code
/// out of the range its scheme promises.
///
/// # Safety
/// The pointers are the base addresses of the spec's operands, `bias` null where there is none, and the weight
/// has the form the spec says; the result overlaps no operand; `isa` is available.
#[allow(clippy::too_many_arguments, reason = "the operands of the operator, one each")]
pub(crate) unsafe fn linear(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &LinearSpec,
    x: *const u8,
    weight: WeightData,
    bias: *const u8,
    out: *mut u8,
) -> Result<()> {
    let (layout, quant) = match spec.weight() {
        WeightSpec::Packed(packed) => (layout_of("linear", packed)?, None),
        weight => {
            let quant = quant_of("linear", weight)?;
            (StripLayout::new(quant.scheme(), quant.n(), quant.k())?, Some(quant))
        }
    };
    let kernels = match spec.act_quant() {
        ActQuant::Int8 { .. } => Kernels::new(isa, &layout),
        _ => None,
    };
    let direct = direct_stride(spec);
    let call =
        Call { max_threads, isa, spec, layout, quant, weight, x, bias, out, direct, fault: Mutex::new(None) };
    let rows = spec.rows();
    // Whole tiles of 12 rows, at least one, as many as the cache holds.
    let chunk = (CHUNK_ELEMENTS / layout.k.max(1) / 12).max(1) * 12;
    let mut first = 0;
    while first < rows {
        let count = chunk.min(rows - first);
        match kernels {
            Some(kernels) => call.int8(team, &kernels, first, count),
            None => call.float(team, first, count),
        }
        first += count;
    }
    taken(call.fault)
}

impl Call<'_> {
    /// Prepares every row of a chunk: `body(row in chunk, row as f32 padded with zeros to whole blocks)`.
    fn prepare(&self, team: &Team, first: usize, count: usize, body: &(dyn Fn(usize, *mut f32) + Sync)) {
        let columns = self.layout.blocks * BLOCK;
        let per_task = if count * columns >= PARALLEL_ELEMENTS { 8 } else { count };
        team.run_with(count.div_ceil(per_task), self.max_threads, &|task| {
            scratch::with(columns * 4, |memory| {
                let line = memory.cast::<f32>();
                for row in task * per_task..((task + 1) * per_task).min(count) {
                    // SAFETY: the line holds `columns` f32, of which a row fills the first k.
                    unsafe {
                        line.add(self.layout.k).write_bytes(0, columns - self.layout.k);
                        read_row(self.spec.x(), self.x, first + row, line);
                    }
                    body(row, line);
                }
            });
        });
    }

    /// Strips of a task of `rows` rows.
    fn strips_per_task(&self, team: &Team, rows: usize) -> usize {
        let enough = (TASK_BYTES / self.layout.strip_bytes.max(1) / rows.div_ceil(4).max(1)).max(1);
        if rows > 1 {
            return enough;
        }
        // Within a task each strip is asked for during those before; only the first ones come cold.
        let threads = team.threads().min(self.max_threads).max(1);
        enough.max(self.layout.strips() / threads.saturating_mul(SINGLE_ROW_TASKS))
    }

    /// Where the strip behind `packed` begins, and how many bytes of it go with a block, if it is `wanted`.
    fn next_strip(&self, packed: *const u8, wanted: bool) -> (*const u8, usize) {
        let bytes = if wanted && self.quant.is_none() { self.layout.strip_bytes } else { 0 };
        (packed.wrapping_add(bytes), bytes.div_ceil(self.layout.blocks.max(1)))
    }

    /// The packed bytes of a strip: where they lie, or packed into `memory`.
    ///
    /// # Safety
    /// `memory` holds a strip where the weight is not packed.
    unsafe fn strip(&self, strip: usize, memory: *mut u8) -> Option<*const u8> {
        match (self.weight, self.quant) {
            // SAFETY: the strip is within the packed bytes.
            (WeightData::Packed(base), _) => Some(unsafe { base.add(strip * self.layout.strip_bytes) }),
            (WeightData::Quant(parts), Some(quant)) => {
                // SAFETY: `parts` are the tensors of `quant`.
                let done = unsafe { pack_strip(&self.layout, quant, &parts, strip, memory) };
                let packed = done.is_ok();
                report(&self.fault, done);
                packed.then_some(memory.cast_const())
            }
            _ => {
                report(
                    &self.fault,
                    Err(OpError::internal("linear", "the weight's bytes are not of its form")),
                );
                None
            }
        }
    }

    /// Bytes a strip that is not packed yet needs, on whole cache lines.
    fn strip_scratch(&self) -> usize {
        if self.quant.is_some() { self.layout.strip_bytes } else { 0 }
    }

    /// A chunk of rows with int8 activations.
    fn int8(&self, team: &Team, kernels: &Kernels, first: usize, count: usize) {
        let (blocks, parts) = (self.layout.blocks, self.layout.parts_of_block());
        let zero_point = self.layout.scheme.offset == Offset::ZeroPoint;
        let group = self.spec.act_quant().group().map_or(1, |columns| (columns / BLOCK).max(1));
        scratch::with(Int8Rows::bytes(count, blocks, parts), |memory| {
            // SAFETY: the block is as large as asked for.
            let rows = Shared(unsafe { Int8Rows::new(memory, count, blocks, parts, group) });
            self.prepare(team, first, count, &|row, line| {
                // SAFETY: every row is written by one task.
                unsafe { rows.get().write(self.isa, row, count, line, kernels.bias, zero_point) }
            });
            let per_task = self.strips_per_task(team, count);
            let joined = kernels.joined.filter(|_| count == 1);
            let panel_floats = panel_len(&self.layout);
            team.run_with(self.layout.strips().div_ceil(per_task), self.max_threads, &|task| {
                let rows = rows.get();
                let bytes = (panel_floats * 2 + 12 * ROWS) * 4 + self.strip_scratch();
                scratch::with(bytes, |memory| {
                    let scales = memory.cast::<f32>();
                    let end = ((task + 1) * per_task).min(self.layout.strips());
                    // Strips that are packed already are taken by twos where the kernel can do so.
                    let step = if joined.is_some() && self.quant.is_none() { 2 } else { 1 };
                    for strip in (task * per_task..end).step_by(step) {
                        // SAFETY: the four parts of the block were counted; rows and strips are in range.
                        unsafe {
                            let offsets = scales.add(panel_floats);
                            let tile = offsets.add(panel_floats);
                            let Some(packed) = self.strip(strip, tile.add(12 * ROWS).cast()) else { return };
                            if joined.is_none() {
                                expand(self.isa, &self.layout, packed, scales, offsets);
                            }
                            let count_of_strips = step.min(end - strip);
                            let (next, next_bytes) = self.next_strip(packed, strip + 1 < end);
                            let second = if count_of_strips == 2 { next } else { core::ptr::null() };
                            let (codes, stride) = (packed, self.layout.stride);
                            let strip_ref =
                                StripRef { codes, stride, scales, offsets, next, next_bytes, second };
                            for_tiles(count, |row, height| {
                                let activations = TileRef::new(&rows, row);
                                let kernel = joined.unwrap_or(kernels.tile(height));
                                if let Some(to) = self.target(first + row, strip + count_of_strips - 1) {
                                    let to = to.sub((count_of_strips - 1) * ROWS);
                                    kernel(&strip_ref, &activations, blocks, to, self.direct.unwrap_or(ROWS));
                                } else {
                                    kernel(&strip_ref, &activations, blocks, tile, ROWS);
                                    for i in 0..count_of_strips {
                                        self.store(first + row, height, strip + i, tile.add(i * ROWS));
                                    }
                                }
                            });
                        }
                    }
                });
            });
        });
    }

    /// A chunk of rows with activations as they are, or rounded and scaled back: f8, and int8 where groups of
    /// weights do not follow those of activations.
    fn float(&self, team: &Team, first: usize, count: usize) {
        let columns = self.layout.blocks * BLOCK;
        let rounded = self.spec.act_quant() != ActQuant::None;
        scratch::with(count * columns * 4, |memory| {
            let x = Shared(memory.cast::<f32>());
            self.prepare(team, first, count, &|row, line| {
                // SAFETY: the line has whole blocks; every row is written by one task.
                unsafe {
                    if rounded {
                        self.round_line(line);
                    }
                    write_f32(x.get(), row, count, columns, line);
                }
            });
            let group = if count < 4 { SINGLE_STRIPS } else { 1 };
            let per_task = self.strips_per_task(team, count).next_multiple_of(group);
            let strips = self.layout.strips();
            team.run_with(strips.div_ceil(per_task), self.max_threads, &|task| {
                let end = ((task + 1) * per_task).min(strips);
                for strip in (task * per_task..end).step_by(group) {
                    // SAFETY: rows and strips are in range.
                    unsafe { self.float_strips(x.get(), first, count, strip, group.min(end - strip)) };
                }
            });
        });
    }

    /// Replaces a line of whole blocks by what rounded activations stand for.
    ///
    /// # Safety
    /// The line holds whole blocks.
    unsafe fn round_line(&self, line: *mut f32) {
        let columns = self.layout.blocks * BLOCK;
        // SAFETY: by contract; zeros behind the row change no scale.
        let line = unsafe { core::slice::from_raw_parts_mut(line, columns) };
        let group = self.spec.act_quant().group().unwrap_or(columns).clamp(1, columns.max(1));
        line.chunks_mut(group).for_each(|part| replace_by_codes(self.isa, part, self.spec.act_quant()));
    }

    /// Strips `strip .. strip + group` for all rows of a chunk.
    ///
    /// # Safety
    /// `x` holds the chunk's tiles; rows and strips are in range.
    unsafe fn float_strips(&self, x: *const f32, first: usize, count: usize, strip: usize, group: usize) {
        let columns = self.layout.blocks * BLOCK;
        let panel_floats = panel_len(&self.layout);
        let (panel_stride, acc_stride) = (PANEL_COLUMNS * ROWS, count * ROWS);
        let floats = group * (panel_floats * 2 + panel_stride + acc_stride);
        scratch::with(floats * 4 + group * self.strip_scratch(), |memory| {
            // SAFETY: the parts of the block were counted in the line above, in this order.
            unsafe {
                let scales = memory.cast::<f32>();
                let panels = scales.add(group * panel_floats * 2);
                let acc = panels.add(group * panel_stride);
                let packed = acc.add(group * acc_stride).cast::<u8>();
                acc.write_bytes(0, group * acc_stride);
                let stride = self.layout.stride;
                let none = StripRef {
                    codes: packed,
                    stride,
                    scales,
                    offsets: scales,
                    next: packed,
                    next_bytes: 0,
                    second: core::ptr::null(),
                };
                // A single row is bound by reading the weight: its codes go from memory to registers only.
                let direct = count == 1 && has_single_row(self.isa, &self.layout);
                let mut strips = [none; SINGLE_STRIPS];
                let mut starts = [packed.cast_const(); SINGLE_STRIPS];
                for (i, slot) in strips.iter_mut().enumerate().take(group) {
                    let Some(codes) = self.strip(strip + i, packed.add(i * self.strip_scratch())) else {
                        return;
                    };
                    starts[i] = codes;
                    if direct {
                        continue;
                    }
                    let scales = scales.add(i * panel_floats * 2);
                    let offsets = scales.add(panel_floats);
                    expand(self.isa, &self.layout, codes, scales, offsets);
                    *slot = StripRef { codes, scales, offsets, ..none };
                }
                if direct {
                    single_row(self.isa, &self.layout, &starts[..group], x, acc);
                }
                let parts = self.layout.parts_of_block();
                let part = if scales_apart(self.isa, &self.layout) { BLOCK / parts } else { 0 };
                for column in (0..if direct { 0 } else { columns }).step_by(PANEL_COLUMNS) {
                    let width = PANEL_COLUMNS.min(columns - column);
                    for (i, strip) in strips.iter().enumerate().take(group) {
                        let dst = panels.add(i * panel_stride);
                        panel(self.isa, &self.layout, strip, column / BLOCK, width / BLOCK, dst);
                    }
                    for_tiles(count, |row, height| {
                        let at = |s: usize| FloatTile {
                            panel: panels.add(s * panel_stride),
                            panel_stride,
                            scales: strips[s].scales.add(column / BLOCK * parts * ROWS),
                            scales_stride: 2 * panel_floats,
                            part,
                            x: x.add(row * columns + column * height),
                            columns: width,
                            acc: acc.add(s * acc_stride + row * ROWS),
                            acc_stride,
                        };
                        if height == 1 {
                            float_tile(self.isa, 1, group, &at(0));
                        } else {
                            (0..group).for_each(|s| float_tile(self.isa, height, 1, &at(s)));
                        }
                    });
                }
                for s in 0..group {
                    for_tiles(count, |row, height| {
                        self.store(first + row, height, strip + s, acc.add(s * acc_stride + row * ROWS));
                    });
                }
            }
        });
    }

    /// Where a tile of this row and strip may be written straight away.
    fn target(&self, row: usize, strip: usize) -> Option<*mut f32> {
        let stride = self.direct.filter(|_| (strip + 1) * ROWS <= self.layout.n)?;
        let at = self.spec.out().layout().offset() + row * stride + strip * ROWS;
        // SAFETY: row and strip are within the result.
        Some(unsafe { self.out.cast::<f32>().add(at) })
    }

    /// Bias, activation and rounding: `height` rows of 16 sums into the result.
    ///
    /// # Safety
    /// Rows and strip are within the result; `sums` holds the tile.
    unsafe fn store(&self, first: usize, height: usize, strip: usize, sums: *mut f32) {
        let columns = ROWS.min(self.layout.n - strip * ROWS);
        let out = self.spec.out();
        let step = out.strides().last().copied().unwrap_or(1);
        let activation = self.spec.activation();
        for m in 0..height {
            // SAFETY: the tile has `height` rows of 16; the columns exist in bias and result.
            unsafe {
                let line = core::slice::from_raw_parts_mut(sums.add(m * ROWS), ROWS);
                if let Some(bias) = self.spec.bias() {
                    let at = bias.layout().offset();
                    let stride = bias.strides().last().copied().unwrap_or(1);
                    for (c, sum) in line.iter_mut().enumerate().take(columns) {
                        *sum += load(bias.dtype(), self.bias, at + (strip * ROWS + c) * stride);
                    }
                }
                match activation {
                    Activation::Identity => {}
                    Activation::Relu => line.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v }),
                    other => line.iter_mut().for_each(|v| *v = other.apply(f64::from(*v)) as f32),
                }
                let at = row_offset(out, first + m) + strip * ROWS * step;
                match out.dtype() {
                    DType::F32 if step == 1 => {
                        let to = self.out.cast::<f32>().add(at);
                        if columns == ROWS {
                            to.cast::<[f32; ROWS]>().write_unaligned(*line.as_ptr().cast());
                        } else {
                            to.copy_from_nonoverlapping(line.as_ptr(), columns);
                        }
                    }
                    dtype => {
                        for (c, &value) in line.iter().enumerate().take(columns) {
                            store_one(dtype, self.out, at + c * step, value);
                        }
                    }
                }
            }
        }
    }
}

/// Distance of rows of an f32 result that needs nothing done to its sums and whose rows are evenly apart.
fn direct_stride(spec: &LinearSpec) -> Option<usize> {
    let out = spec.out();
    let plain =
        spec.bias().is_none() && spec.activation() == Activation::Identity && out.dtype() == DType::F32;
    let (columns, leading) = (out.strides().last()?, out.rank() - 1);
    if !plain || *columns != 1 {
        return None;
    }
    let stride = if leading == 0 { spec.n() } else { out.strides()[leading - 1] };
    let even =
        (1..leading).all(|i| out.strides()[i].checked_mul(out.dims()[i]) == Some(out.strides()[i - 1]));
    even.then_some(stride)
}

/// Element `at` as f32.
///
/// # Safety
/// It exists and is of this type.
unsafe fn load(dtype: DType, base: *const u8, at: usize) -> f32 {
    // SAFETY: by contract.
    unsafe {
        match dtype {
            DType::F32 => *base.cast::<f32>().add(at),
            DType::F16 => (*base.cast::<f16>().add(at)).to_f32(),
            _ => (*base.cast::<bf16>().add(at)).to_f32(),
        }
    }
}

/// Writes element `at`, rounded to nearest even.
///
/// # Safety
/// It exists and is of this type.
pub(crate) unsafe fn store_one(dtype: DType, base: *mut u8, at: usize, value: f32) {
    // SAFETY: by contract.
    unsafe {
        match dtype {
            DType::F32 => *base.cast::<f32>().add(at) = value,
            DType::F16 => *base.cast::<f16>().add(at) = f16::from_f32(value),
            _ => *base.cast::<bf16>().add(at) = bf16::from_f32(value),
        }
    }
}
