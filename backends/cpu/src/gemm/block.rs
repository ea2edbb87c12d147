//! The blocked loops: which part of the result a task computes, and in what order a task goes through it.
//!
//! Every element of the result is summed by one task, in blocks of k in rising order, so that neither the
//! number of threads nor the number of rows can change a bit of it.

use super::epilogue::Epilogue;
use super::few::{self, Few};
use super::kernel::{Kernel, Panel, TileFn};
use super::pack::Strip;
use super::{BatchDim, Factor, GemmTask, Mat};
use crate::Isa;
use crate::pool::{Team, scratch};
use portolan_ops::DType;

/// Packed elements of k in a block. The panel of b (`256 · 32 · 4` = 32 KiB with AVX-512, 16 KiB with AVX2)
/// stays in a first-level cache of 48 or 32 KiB while all panels of a in the block pass by.
const KC: usize = 256;

/// Rows of a block, about: `280 · 256 · 4` = 280 KiB of packed a, and at most `280 · 512 · 4` = 560 KiB of sums,
/// both in a second-level cache of 1 or 2 MiB. A panel of b is packed once per this many rows.
const MC: usize = 280;

/// Columns of a block, about; a is packed once per this many columns.
const NC: usize = 512;

/// Panels of b packed together where columns are side by side, so that memory is read in runs of 512 bytes.
const GROUP: usize = 4;

/// Products below which a second thread costs more than it saves: about 10 µs of one thread.
const SEQUENTIAL: usize = 1 << 19;

/// Bytes of the second factor that are packed at once for all blocks of rows: what working memory keeps.
const SLAB_BYTES: usize = 8 << 20;

/// Products from which on packing for all blocks of rows pays for handing out work twice.
const SLAB_PRODUCTS: usize = 1 << 25;

/// Memory that tasks write disjoint parts of.
struct Shared(*mut u8);
// SAFETY: as it says.
unsafe impl Sync for Shared {}
impl Shared {
    /// Taken through a method, so that closures capture the whole and not the pointer inside.
    fn get(&self) -> *mut u8 {
        self.0
    }
}

/// Runs `task` on at most `max_threads` threads of `team`.
///
/// # Safety
/// Pointers are valid for the extents and strides; out overlaps nothing but c, and c only if it is the same
/// view. The processor has `isa`.
pub(crate) unsafe fn gemm(team: &Team, max_threads: usize, isa: Isa, task: &GemmTask) {
    let plan = Plan::new(isa, task, team.threads().min(max_threads).max(1));
    // SAFETY: passed on.
    unsafe {
        match plan.slab() {
            Some(columns) => plan.run_slabs(team, columns),
            None => plan.run_all(team, isa),
        }
    }
}

/// A product cut into blocks.
struct Plan<'a> {
    task: &'a GemmTask,
    batch: &'a [BatchDim],
    kernel: Kernel,
    epilogue: Epilogue<'a>,
    /// Whether the product has few rows and is computed without packing.
    few: bool,
    products: usize,
    /// Rows of one product: those of the whole batch where it is one tall matrix.
    m: usize,
    row_blocks: usize,
    block_rows: usize,
    column_blocks: usize,
    block_columns: usize,
    threads: usize,
}

impl<'a> Plan<'a> {
    fn new(isa: Isa, task: &'a GemmTask, threads: usize) -> Self {
        let b_dtype = match task.b {
            Factor::Plain(b) => b.dtype,
            Factor::Packed { dtype, .. } => dtype,
        };
        let kernel = Kernel::of(isa, task.a.dtype, b_dtype);
        let (batch, m) = merged(task);
        let products: usize = batch.iter().map(|d| d.len).product();
        let work = products.saturating_mul(m).saturating_mul(task.n).saturating_mul(task.k.max(1));
        let threads = if work < SEQUENTIAL { 1 } else { threads };
        let mut plan = Plan {
            task,
            batch,
            kernel,
            epilogue: Epilogue::new(task),
            few: few_rows(task, m),
            products,
            m,
            row_blocks: 0,
            block_rows: 0,
            column_blocks: 0,
            block_columns: 0,
            threads,
        };
        plan.cut(threads);
        plan
    }

    /// Cuts the product into blocks for so many threads.
    fn cut(&mut self, threads: usize) {
        self.set_blocks(self.m.div_ceil(MC), self.task.n.div_ceil(NC));
        // Three blocks a thread even out what the threads do not do at the same speed. Cutting only moves
        // whole sums between tasks.
        while threads > 1 && self.products * self.row_blocks * self.column_blocks < 3 * threads {
            let before = (self.row_blocks, self.column_blocks);
            if self.block_columns > self.block_rows && self.block_columns > self.kernel.nr {
                self.set_blocks(before.0, before.1 + 1);
            } else if self.block_rows > 4 * self.kernel.mr {
                self.set_blocks(before.0 + 1, before.1);
            } else {
                self.set_blocks(before.0, before.1 + 1);
            }
            if (self.row_blocks, self.column_blocks) == before {
                break;
            }
        }
    }

    /// Cuts into about so many blocks, all but the last of whole tiles and of one size.
    fn set_blocks(&mut self, row_blocks: usize, column_blocks: usize) {
        let cut = |extent: usize, blocks: usize, tile: usize| {
            let size = extent.div_ceil(blocks.max(1)).next_multiple_of(tile).max(tile);
            (extent.div_ceil(size), size)
        };
        (self.row_blocks, self.block_rows) = cut(self.m, row_blocks, self.kernel.mr);
        (self.column_blocks, self.block_columns) = cut(self.task.n, column_blocks, self.kernel.nr);
    }

    /// Computes every block.
    ///
    /// # Safety
    /// As [`gemm`].
    unsafe fn run_all(&self, team: &Team, isa: Isa) {
        let tasks = self.products * self.row_blocks * self.column_blocks;
        team.run_with(tasks, self.threads, &|index| {
            // SAFETY: passed on; tasks write disjoint blocks of out.
            unsafe {
                match &self.task.b {
                    Factor::Plain(b) if self.few => self.run_few(b, isa, index),
                    _ => self.run(index),
                }
            }
        });
    }

    /// How many columns of the second factor to pack at once, if several blocks of rows will read them and would
    /// else pack them again each: as many as [`SLAB_BYTES`] hold.
    fn slab(&self) -> Option<usize> {
        let kernel = &self.kernel;
        let floats = matches!(self.task.b, Factor::Plain(_)) && kernel.group == 1 && kernel.header == 0;
        let large = self.m.saturating_mul(self.task.n).saturating_mul(self.task.k) >= SLAB_PRODUCTS;
        if self.few || self.products != 1 || self.row_blocks < 2 || !floats || !large {
            return None;
        }
        let panels = SLAB_BYTES / kernel.elem / kernel.nr / self.task.k;
        let columns = panels * kernel.nr;
        (columns >= NC.min(self.task.n)).then_some(columns)
    }

    /// Computes slab after slab of columns, each from a packed second factor. The order of sums is as without.
    ///
    /// # Safety
    /// As [`gemm`]; `columns` is what [`Plan::slab`] gave.
    unsafe fn run_slabs(&self, team: &Team, columns: usize) {
        let (kernel, k) = (&self.kernel, self.task.k);
        let bytes = columns.min(self.task.n.next_multiple_of(kernel.nr)) * k * kernel.elem;
        let dtype = accumulator(self.task.out.dtype);
        scratch::with(bytes, |packed| {
            for j0 in (0..self.task.n).step_by(columns) {
                let n = columns.min(self.task.n - j0);
                let shared = Shared(packed);
                let per_task = GROUP * kernel.nr;
                team.run_with(n.div_ceil(per_task), self.threads, &|index| {
                    let Factor::Plain(b) = &self.task.b else { return };
                    let j = index * per_task;
                    // SAFETY: the columns exist; tasks write disjoint panels of the slab.
                    unsafe {
                        let strip = Strip {
                            src: b.at(0, 0, j0 + j),
                            lanes: per_task.min(n - j),
                            width: kernel.nr,
                            lane_stride: b.col_stride,
                            k_stride: b.row_stride,
                            k,
                            panel: k * kernel.nr,
                        };
                        (kernel.pack_b)(&strip, shared.get().add(j * k * kernel.elem));
                    }
                });
                let mut task = self.task.columns(j0, n);
                task.b = Factor::Packed { ptr: packed, dtype };
                let mut plan = Plan { task: &task, epilogue: Epilogue::new(&task), ..*self };
                plan.cut(self.threads);
                team.run_with(plan.row_blocks * plan.column_blocks, self.threads, &|index| {
                    // SAFETY: passed on; tasks write disjoint blocks of out.
                    unsafe { plan.run(index) }
                });
            }
        });
    }

    /// Computes one block of one product.
    ///
    /// # Safety
    /// As [`gemm`].
    unsafe fn run(&self, index: usize) {
        let blocks = self.row_blocks * self.column_blocks;
        let (product, block) = (index / blocks, index % blocks);
        let (i0, j0) =
            (block / self.column_blocks * self.block_rows, block % self.column_blocks * self.block_columns);
        let (rows, columns) = (self.block_rows.min(self.m - i0), self.block_columns.min(self.task.n - j0));
        let at = offsets(self.batch, product);
        let kernel = &self.kernel;
        let (row_panels, column_panels) = (rows.div_ceil(kernel.mr), columns.div_ceil(kernel.nr));
        let kc = KC * kernel.group;
        let steps = KC.min(self.task.k.div_ceil(kernel.group));
        let grouped = matches!(self.task.b, Factor::Plain(b) if b.col_stride == 1);
        let group = if grouped { GROUP.min(column_panels) } else { 1 };
        let panel = (kernel.header + steps * kernel.nr).next_multiple_of(16);
        let tile_bytes = kernel.mr * kernel.nr * kernel.elem;
        let one_pass = self.task.k <= kc;
        let tiles = if one_pass { 1 } else { row_panels * column_panels };
        let a_bytes = (rows * steps * kernel.elem).next_multiple_of(64);
        let b_bytes = group * panel * kernel.elem;
        let (b_in_place, compute) = self.in_place(row_panels);
        scratch::with(a_bytes + b_bytes + tiles * tile_bytes, |start| {
            // SAFETY: the three parts lie one behind the other in the block; panels lie in their part. Only
            // elements of the operands are read, and only this block of out is written.
            unsafe {
                let (a, b) = (start, start.add(a_bytes));
                let sums = b.add(b_bytes);
                if self.task.k == 0 {
                    sums.write_bytes(0, tile_bytes);
                }
                let mut k0 = 0;
                loop {
                    let k = kc.min(self.task.k - k0);
                    let steps = k.div_ceil(kernel.group);
                    let last = k0 + k == self.task.k;
                    self.pack_a(at.a, i0, rows, k0, k, a);
                    for column in 0..column_panels {
                        let from = column / group * group;
                        let mut b_panel = b.add((column - from) * panel * kernel.elem).cast_const();
                        let (mut ahead, mut stride) = (b_panel, 0);
                        if k > 0 {
                            if let Some((packed, size)) = b_in_place {
                                let place =
                                    |column, k| (j0 + column * kernel.nr) * self.task.k + k * kernel.nr;
                                b_panel = packed.add(place(column, k0) * size);
                                // Tiles share the work of asking for the panel that comes next.
                                stride = kernel.nr * size / row_panels;
                                ahead = if column + 1 < column_panels {
                                    packed.wrapping_add(place(column + 1, k0) * size)
                                } else {
                                    packed.wrapping_add(place(0, k0 + k) * size)
                                };
                            } else if column == from {
                                let lanes = (columns - from * kernel.nr).min(group * kernel.nr);
                                self.pack_b(at.b, j0 + from * kernel.nr, lanes, k0, k, panel, b);
                            }
                        }
                        for row in 0..row_panels {
                            let r0 = row * kernel.mr;
                            let tile_rows = kernel.mr.min(rows - r0);
                            let tile = if one_pass { 0 } else { column * row_panels + row };
                            let tile = sums.add(tile * tile_bytes);
                            if k > 0 {
                                let a_panel = a.add(r0 * steps * kernel.elem);
                                let ahead = ahead.wrapping_add(row * steps * stride);
                                let b_panel = Panel { at: b_panel, ahead, stride };
                                compute(tile_rows, steps, a_panel, b_panel, tile, k0 > 0);
                            }
                            if last {
                                let c0 = column * kernel.nr;
                                let tile_columns = kernel.nr.min(columns - c0);
                                self.epilogue.store(
                                    tile,
                                    kernel.nr,
                                    [tile_rows, tile_columns],
                                    [i0 + r0, j0 + c0],
                                    &at,
                                );
                            }
                        }
                    }
                    k0 += k;
                    if last {
                        break;
                    }
                }
            }
        });
    }

    /// Computes one block of one product of few rows.
    ///
    /// # Safety
    /// As [`gemm`].
    unsafe fn run_few(&self, b: &Mat, isa: Isa, index: usize) {
        let (product, column_block) = (index / self.column_blocks, index % self.column_blocks);
        let at = offsets(self.batch, product);
        let j0 = column_block * self.block_columns;
        let columns = self.block_columns.min(self.task.n - j0);
        let (rows, k) = (self.m, self.task.k);
        let kernel = &self.kernel;
        let part = Few { isa, kernel, a: &self.task.a, b, a_at: at.a, b_at: at.b, rows, j0, columns, k };
        let length = rows * columns + part.scratch(KC);
        scratch::with(length * 4, |start| {
            // SAFETY: the block holds `length` elements and is zeroed, so that they are initialised.
            let memory = unsafe {
                start.write_bytes(0, length * 4);
                std::slice::from_raw_parts_mut(start.cast::<f32>(), length)
            };
            let (sums, work) = memory.split_at_mut(rows * columns);
            // SAFETY: passed on; only this block of out is written.
            unsafe {
                match b.col_stride {
                    1 => part.added_rows(KC, sums, work),
                    _ => part.dots(sums, work),
                }
                for j in (0..columns).step_by(super::epilogue::WIDTH) {
                    let shape = [rows, (columns - j).min(super::epilogue::WIDTH)];
                    self.epilogue.store(sums.as_ptr().add(j).cast(), columns, shape, [0, j0 + j], &at);
                }
            }
        });
    }

    /// Packs rows `i0..i0 + rows` of a, products `k0..k0 + k`, as panels without gaps.
    ///
    /// # Safety
    /// The elements exist; `dst` holds them packed.
    unsafe fn pack_a(&self, at: usize, i0: usize, rows: usize, k0: usize, k: usize, dst: *mut u8) {
        let (a, kernel) = (&self.task.a, &self.kernel);
        let steps = k.div_ceil(kernel.group);
        let pack = |r0: usize, lanes: usize, width: usize| {
            // SAFETY: the rows exist, promised by the caller.
            unsafe {
                let strip = Strip {
                    src: a.at(at, i0 + r0, k0),
                    lanes,
                    width,
                    lane_stride: a.row_stride,
                    k_stride: a.col_stride,
                    k,
                    panel: kernel.mr * steps,
                };
                (kernel.pack_a)(&strip, dst.add(r0 * steps * kernel.elem));
            }
        };
        if k == 0 {
            return;
        }
        let whole = rows / kernel.mr * kernel.mr;
        if whole > 0 {
            pack(0, whole, kernel.mr);
        }
        if whole < rows {
            pack(whole, rows - whole, rows - whole);
        }
    }

    /// The prepacked factor and the size of its elements, if tiles can read it as it is, and the tile to use.
    ///
    /// A narrow panel is widened on the way into registers where one panel of a is all that passes by, and
    /// else once for all of them.
    fn in_place(&self, row_panels: usize) -> (Option<(*const u8, usize)>, TileFn) {
        match (self.task.b, self.kernel.narrow_tile) {
            (Factor::Packed { ptr, dtype }, _) if dtype.bits() as usize == 8 * self.kernel.elem => {
                (Some((ptr, self.kernel.elem)), self.kernel.tile)
            }
            (Factor::Packed { ptr, .. }, Some(tile)) if row_panels == 1 => (Some((ptr, 2)), tile),
            _ => (None, self.kernel.tile),
        }
    }

    /// Packs `lanes` columns of b from column j on, products `k0..k0 + k`, as panels `panel` elements apart.
    ///
    /// # Safety
    /// The elements exist; `dst` holds the panels.
    #[allow(clippy::too_many_arguments)]
    unsafe fn pack_b(
        &self,
        at: usize,
        j: usize,
        lanes: usize,
        k0: usize,
        k: usize,
        panel: usize,
        dst: *mut u8,
    ) {
        let width = self.kernel.nr;
        // SAFETY: the columns exist, promised by the caller; a prepacked panel has all of its `nr` columns.
        unsafe {
            let strip = match self.task.b {
                Factor::Plain(b) => Strip {
                    src: b.at(at, k0, j),
                    lanes,
                    width,
                    lane_stride: b.col_stride,
                    k_stride: b.row_stride,
                    k,
                    panel,
                },
                Factor::Packed { ptr, dtype } => Strip {
                    src: ptr.add((j * self.task.k + k0 * width) * (dtype.bits() as usize / 8)),
                    lanes: width,
                    width,
                    lane_stride: 1,
                    k_stride: width,
                    k,
                    panel,
                },
            };
            (self.kernel.pack_b)(&strip, dst);
        }
    }
}

/// Where one product of a batch starts in each operand, in elements.
#[derive(Clone, Copy, Default)]
pub(super) struct Offsets {
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) c: usize,
    pub(super) out: usize,
}

fn offsets(batch: &[BatchDim], product: usize) -> Offsets {
    let (mut at, mut rest) = (Offsets::default(), product);
    for dim in batch.iter().rev() {
        let index = rest % dim.len;
        rest /= dim.len;
        at.a += index * dim.a;
        at.b += index * dim.b;
        at.c += index * dim.c;
        at.out += index * dim.out;
    }
    at
}

/// The batch that is left, and m, after joining inner dimensions that share b and continue the rows of a, c
/// and out: such a batch is one taller matrix, and b is packed for all of it at once.
fn merged(task: &GemmTask) -> (&[BatchDim], usize) {
    let (mut batch, mut m) = (&task.batch[..], task.m);
    while let [outer @ .., dim] = batch {
        let continues = |stride: usize, row_stride: usize| stride == m * row_stride;
        let joins = dim.b == 0
            && continues(dim.a, task.a.row_stride)
            && continues(dim.out, task.out.row_stride)
            && task.c.is_none_or(|c| continues(dim.c, c.row_stride));
        if !joins && dim.len != 1 {
            break;
        }
        m *= dim.len;
        batch = outer;
    }
    (batch, m)
}

/// Whether b is a plain matrix whose products or columns are side by side and rows are few.
///
/// Dot products sum in another order than tiles do, so they are not for products whose rows must not depend
/// on how many there are; nor for k so long that the widened rows of a would not fit a second-level cache. Rows and
/// columns are taken one by one, so each has to start on a whole byte.
fn few_rows(task: &GemmTask, m: usize) -> bool {
    let whole = |mat: &Mat, stride: usize| !mat.dtype.is_sub_byte() || stride.is_multiple_of(2);
    match &task.b {
        Factor::Plain(b)
            if m <= few::ROWS
                && task.k > 0
                && accumulator(task.out.dtype) == DType::F32
                && whole(&task.a, task.a.row_stride) =>
        {
            let dots = b.row_stride == 1 && !task.invariant && task.k <= (1 << 19) / few::ROWS;
            match b.col_stride {
                1 => whole(b, b.row_stride),
                apart => dots && whole(b, apart),
            }
        }
        _ => false,
    }
}

/// Whether accumulators of this result are f64 or i32 rather than f32 is decided by its element type alone.
pub(super) const fn accumulator(out: DType) -> DType {
    match out {
        DType::F64 | DType::I32 => out,
        _ => DType::F32,
    }
}
