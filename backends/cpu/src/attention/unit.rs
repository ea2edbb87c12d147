//! One piece of attention: a set of query rows that share a key head, over all of their keys or one chunk.
//!
//! Keys are taken in chunks, chunks in blocks, both at fixed positions of the sequence. Each chunk starts
//! afresh and is then merged, in order: it makes no difference whether the chunks of a row are computed here
//! one after another, or elsewhere side by side.

use super::block::{Addresses, CacheRows};
use super::few::Few;
use super::form::{BLOCK, Form};
use super::sequences::Sequence;
use super::softmax::{State, merge, normalize};
use super::task::AttentionTask;
use super::tile::Tile;
use super::unseen;
use super::view::{read_row, write_row};
use crate::Isa;
use crate::pool::scratch;
use crate::simd::{Kernel, Lanes, dispatch};
use core::ops::Range;

/// Keys of a chunk: 10 blocks. Half a megabyte of f32 keys and values of 128 elements, about 100 µs of memory
/// traffic: enough to be worth handing out, few enough that 8192 keys make 18 pieces.
pub(super) const CHUNK: usize = 10 * BLOCK;

/// Rows of a unit, at most: two panels of AVX-512 share each block of keys and values that is read.
pub(super) const UNIT_ROWS: usize = 128;

/// Rows up to which lanes for keys and columns are faster than a lane per row.
const FEW_ROWS: usize = 8;

/// Query rows `first_row ..` of one sequence and of each of `heads` key heads from `head` on; numbered token by
/// token, then by query head. Several heads only in [`Step::Chunks`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    pub(super) sequence: Sequence,
    pub(super) head: usize,
    pub(super) heads: usize,
    pub(super) first_row: usize,
    pub(super) rows: usize,
}

impl Unit {
    /// The keys that row `row` of this unit sees.
    fn visible(&self, task: &AttentionTask, row: usize) -> Range<usize> {
        task.visible(self.first_row + row, self.sequence.q_len, self.sequence.kv_len)
    }

    /// The keys that any row from `first` to `last` sees: both ends grow with the row.
    fn visible_to(&self, task: &AttentionTask, first: usize, last: usize) -> Range<usize> {
        let (start, end) = (self.visible(task, first).start, self.visible(task, last).end);
        start.min(end)..end
    }

    /// The chunks that hold those keys of all rows.
    pub(super) fn chunks(&self, task: &AttentionTask) -> Range<usize> {
        let keys = self.visible_to(task, 0, self.rows - 1);
        if keys.is_empty() { 0..0 } else { keys.start / CHUNK..keys.end.div_ceil(CHUNK) }
    }
}

/// What is to be done with a unit.
#[derive(Clone, Copy)]
pub(super) enum Step {
    /// Everything.
    Whole,
    /// Some chunks, from the first to before the second, each into a state of [`state_len`] floats for each head, one
    /// after another; the last says how many floats apart those of heads are.
    Chunks([usize; 2], *mut f32, usize),
    /// Merge the states of all chunks, one after another in memory, and write the results.
    Finish(*mut f32),
}

/// Floats of the state of a unit: of all its panels.
pub(super) fn state_len(isa: Isa, task: &AttentionTask, rows: usize) -> usize {
    dispatch(isa, Choice { isa, rows, visit: Measure { task, rows } })
}

/// Does one step of a unit.
///
/// # Safety
/// The operands of the task are as its contract says, lengths and pages are checked, the rows of the unit
/// exist and nobody else writes their results; states have room.
pub(super) unsafe fn run(isa: Isa, task: &AttentionTask, unit: &Unit, step: Step) {
    let floats = dispatch(isa, Choice { isa, rows: unit.rows, visit: RoomLen { task, unit } });
    // The working memory is taken out here: a closure inside would not be compiled for the instruction set.
    scratch::with(floats * size_of::<f32>(), |base| {
        let piece = Piece { task, unit, step, base: base.cast() };
        dispatch(isa, Choice { isa, rows: unit.rows, visit: piece });
    });
}

/// A computation over lanes and a form.
pub(super) trait Visit {
    type Output;
    fn visit<L: Lanes, F: Form>(self) -> Self::Output;
}

/// Chooses the form for a number of rows. All give the same bits, so only speed depends on it.
pub(super) struct Choice<V> {
    pub(super) isa: Isa,
    pub(super) rows: usize,
    pub(super) visit: V,
}

impl<V: Visit> Kernel for Choice<V> {
    type Output = V::Output;

    #[inline(always)]
    fn run<L: Lanes>(self) -> V::Output {
        if self.rows <= FEW_ROWS {
            self.visit.visit::<L, Few>()
        } else if L::LEN == 16 {
            match self.rows {
                ..=16 => self.visit.visit::<L, Tile<1, 16>>(),
                17..=32 => self.visit.visit::<L, Tile<2, 12>>(),
                _ => self.visit.visit::<L, Tile<4, 6>>(),
            }
        } else if self.isa == Isa::Avx2 {
            self.visit.visit::<L, Tile<2, 6>>()
        } else {
            self.visit.visit::<L, Tile<1, 4>>()
        }
    }
}

struct Measure<'a> {
    task: &'a AttentionTask,
    rows: usize,
}

impl Visit for Measure<'_> {
    type Output = usize;

    #[inline(always)]
    fn visit<L: Lanes, F: Form>(self) -> usize {
        let panels = self.rows.div_ceil(F::rows::<L>());
        panels * State::len(F::width::<L>(), F::result_len::<L>(self.task.padded_v()))
    }
}

/// Floats of each part of a unit's working memory, in the order of [`Room`].
#[inline(always)]
fn room_lens<L: Lanes, F: Form>(task: &AttentionTask, unit: &Unit) -> [usize; 9] {
    let (dk, dv, width) = (task.padded_k(), task.padded_v(), F::width::<L>());
    let panels = unit.rows.div_ceil(F::rows::<L>());
    let states = panels * State::len(width, F::result_len::<L>(dv));
    [
        BLOCK * dk,
        if task.shared { 0 } else { BLOCK * dv },
        BLOCK * width,
        width,
        2 * width,
        dk.max(dv).max(BLOCK).next_multiple_of(16),
        unit.heads * panels * F::query_len::<L>(dk),
        states,
        states,
    ]
    .map(|len| len.next_multiple_of(16))
}

struct RoomLen<'a> {
    task: &'a AttentionTask,
    unit: &'a Unit,
}

impl Visit for RoomLen<'_> {
    type Output = usize;

    #[inline(always)]
    fn visit<L: Lanes, F: Form>(self) -> usize {
        room_lens::<L, F>(self.task, self.unit).iter().sum()
    }
}

struct Piece<'a> {
    task: &'a AttentionTask,
    unit: &'a Unit,
    step: Step,
    base: *mut f32,
}

impl Visit for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn visit<L: Lanes, F: Form>(self) {
        let Piece { task, unit, step, base } = self;
        let mut at = base;
        let [keys, values, scores, correction, bounds, row, queries, parts, totals] =
            room_lens::<L, F>(task, unit).map(|len| {
                let start = at;
                at = at.wrapping_add(len);
                start
            });
        let room = Room { keys, values, scores, correction, bounds, row, queries, parts, totals };
        let work = Work { task, unit, panels: unit.rows.div_ceil(F::rows::<L>()), room };
        // SAFETY: the promise of `run`; the room was measured by the same function.
        unsafe { work.step::<L, F>(step, State::len(F::width::<L>(), F::result_len::<L>(task.padded_v()))) }
    }
}

/// Working memory, in floats.
struct Room {
    /// [`BLOCK`] rows of keys and of values; of keys only where values are the first columns of keys.
    keys: *mut f32,
    values: *mut f32,
    /// `[BLOCK][width]`.
    scores: *mut f32,
    /// `[width]`, and the first and last visible key of each lane, `[2][width]`.
    correction: *mut f32,
    bounds: *mut f32,
    /// One row of queries, results or a mask.
    row: *mut f32,
    /// Of every panel: queries, state of the current chunk, state of the chunks before.
    queries: *mut f32,
    parts: *mut f32,
    totals: *mut f32,
}

struct Work<'a> {
    task: &'a AttentionTask,
    unit: &'a Unit,
    panels: usize,
    room: Room,
}

impl Work<'_> {
    #[inline(always)]
    unsafe fn step<L: Lanes, F: Form>(&self, step: Step, state: usize) {
        let all = self.unit.chunks(self.task);
        let (chunks, states, apart) = match step {
            Step::Chunks([first, end], states, apart) => (first..end, states, apart),
            Step::Whole => (all.clone(), self.room.parts, 0),
            Step::Finish(states) => (0..0, states, 0),
        };
        // SAFETY: the promise of `run`.
        unsafe {
            if !chunks.is_empty() {
                self.load_queries::<L, F>();
            }
            self.clear::<L, F>(self.room.totals, state);
            let end = chunks.end;
            for (i, chunk) in chunks.enumerate() {
                let places = [[state, apart], [chunk, end]];
                match step {
                    Step::Whole => {
                        self.chunk::<L, F>(states, places);
                        self.add::<L, F>(states, state);
                    }
                    _ => self.chunk::<L, F>(states.add(i * self.panels * state), places),
                }
            }
            if let Step::Chunks(..) = step {
                return;
            }
            if let Step::Finish(states) = step {
                for chunk in 0..all.len() {
                    self.add::<L, F>(states.add(chunk * self.panels * state), state);
                }
            }
            self.write::<L, F>(state);
        }
    }

    #[inline(always)]
    unsafe fn clear<L: Lanes, F: Form>(&self, states: *mut f32, state: usize) {
        let (width, len) = (F::width::<L>(), F::result_len::<L>(self.task.padded_v()));
        for panel in 0..self.panels {
            // SAFETY: the promise of `run`.
            unsafe { State::at(states.add(panel * state), width).clear::<L>(width, len) };
        }
    }

    /// Merges states into the totals.
    #[inline(always)]
    unsafe fn add<L: Lanes, F: Form>(&self, states: *mut f32, state: usize) {
        let width = F::width::<L>();
        for panel in 0..self.panels {
            // SAFETY: the promise of `run`.
            unsafe {
                let total = State::at(self.room.totals.add(panel * state), width);
                merge::<L, F>(&total, &State::at(states.add(panel * state), width), self.task.padded_v());
            }
        }
    }

    /// The token and the query head of a row of the unit's key head number `head`.
    #[inline(always)]
    fn place(&self, head: usize, row: usize) -> [usize; 2] {
        let (row, group) = (self.unit.first_row + row, self.task.group());
        [self.unit.sequence.token + row / group, (self.unit.head + head) * group + row % group]
    }

    /// Reads the queries, scaled so that scores come out in units of log 2; 0 in lanes without a row.
    #[inline(always)]
    unsafe fn load_queries<L: Lanes, F: Form>(&self) {
        let Work { task, unit, room, .. } = self;
        let (dim, padded, len) = (task.head_dim, task.padded_k(), F::query_len::<L>(task.padded_k()));
        let scale = task.scale * core::f32::consts::LOG2_E;
        // SAFETY: the promise of `run`.
        unsafe {
            room.queries.write_bytes(0, unit.heads * self.panels * len);
            room.row.write_bytes(0, padded);
            for (head, row) in (0..unit.heads).flat_map(|head| (0..unit.rows).map(move |row| (head, row))) {
                let [token, q_head] = self.place(head, row);
                read_row::<L>(task.q.dtype(), task.q.at([token, q_head, 0]), task.q.inner(), dim, room.row);
                for i in 0..dim {
                    *room.row.add(i) *= scale;
                }
                let (panel, row) = (head * self.panels + row / F::rows::<L>(), row % F::rows::<L>());
                F::put_query::<L>(room.queries.add(panel * len), row, room.row, padded);
            }
        }
    }

    /// The state of every panel of every head over the keys of one chunk of those up to `last`; states of heads lie
    /// `apart`.
    ///
    /// Heads take turns at each block: in the usual layouts they are neighbours in memory, so the pages and
    /// lines of a block are opened once. Head after head over the chunk, each row would cost a page walk.
    #[inline(always)]
    unsafe fn chunk<L: Lanes, F: Form>(
        &self,
        states: *mut f32,
        [[state, apart], [chunk, last]]: [[usize; 2]; 2],
    ) {
        let Work { task, unit, .. } = self;
        let seen = unit.visible_to(task, 0, unit.rows - 1);
        let scales = task.scales.map_or([None; 2], |scales| scales.map(Some));
        let [keys, values] = [(task.k, scales[0]), (task.v, scales[1])].map(|(cache, scale)| CacheRows {
            cache,
            scale,
            table: task.table,
            sequence: unit.sequence.index,
            list: task.lists.map(|lists| lists.at([unit.sequence.token, 0]).cast_const().cast()),
        });
        let mut start = (chunk * CHUNK).max(seen.start / BLOCK * BLOCK);
        let end = ((chunk + 1) * CHUNK).min(seen.end);
        // What is asked for ahead may belong to the next chunk.
        let limit = (last * CHUNK).min(seen.end);
        // SAFETY: the promise of `run`; the keys from start to limit are visible or lie between visible ones.
        unsafe {
            for head in 0..unit.heads {
                self.clear::<L, F>(states.add(head * apart), state);
            }
            let [mut at, mut ahead, mut own] = [[[core::ptr::null_mut(); BLOCK]; 2]; 3];
            while start < end {
                let count = BLOCK.min(end - start);
                for head in 0..unit.heads {
                    let heads = unit.head..unit.head + unit.heads;
                    for (i, rows) in [&keys, &values].into_iter().enumerate() {
                        rows.addresses(unit.head + head, start, count, &mut at[i]);
                        rows.ahead(unit.head + head, heads.clone(), [start, limit], &mut ahead[i]);
                    }
                    let (at, states) = ([&at, &ahead], states.add(head * apart));
                    self.block::<L, F>([&keys, &values], at, &mut own, [start, end], [head, state], states);
                }
                start += BLOCK;
            }
        }
    }

    /// Brings a block of keys, and the values that belong to them, into every panel of one head.
    ///
    /// Values are loaded when the first scores are done: a block of both would not fit a first-level cache of
    /// 32 KiB.
    #[inline(always)]
    unsafe fn block<L: Lanes, F: Form>(
        &self,
        [keys, values]: [&CacheRows; 2],
        [at, ahead]: [&[Addresses; 2]; 2],
        [own_keys, own_values]: &mut [Addresses; 2],
        [start, end]: [usize; 2],
        [head, state]: [usize; 2],
        states: *mut f32,
    ) {
        let Work { task, unit, room, .. } = self;
        let (dk, dv, width) = (task.padded_k(), task.padded_v(), F::width::<L>());
        let count = BLOCK.min(end - start);
        let place = [unit.head + head, start, count];
        // SAFETY: the promise of `run`.
        let keys = unsafe {
            let dims = [task.head_dim, dk];
            keys.load::<L>(&at[0], place, dims, F::PACKED, room.keys, own_keys, &ahead[0])
        };
        let mut own_values = Some(own_values);
        let mut loaded = None;
        let mut finite = None;
        for panel in 0..self.panels {
            let first = panel * F::rows::<L>();
            let last = (first + F::rows::<L>()).min(unit.rows) - 1;
            let seen = unit.visible_to(task, first, last);
            if seen.end <= start || seen.start >= start + count {
                continue;
            }
            let all =
                unit.visible(task, last).start <= start && unit.visible(task, first).end >= start + count;
            // SAFETY: the promise of `run`.
            unsafe {
                let query = room.queries.add((head * self.panels + panel) * F::query_len::<L>(dk));
                let counts = [count, last - first + 1];
                F::score::<L>(query, &keys, dk, counts, room.scores);
                if !task.scores.is_plain() {
                    self.adjust::<L, F>(head, [first, last], start, count);
                }
                if !all {
                    self.hide::<L, F>(first, last, start, count);
                }
                let state = State::at(states.add(panel * state), width);
                F::weights::<L>(room.scores, counts, &state, room.correction);
                if let (false, Some(own)) = (task.shared, own_values.take()) {
                    let dims = [task.v_head_dim, dv];
                    let to = room.values;
                    loaded = Some(values.load::<L>(&at[1], place, dims, F::PACKED, to, own, &ahead[1]));
                }
                let values = loaded.as_ref().unwrap_or(&keys);
                if !all {
                    let finite = match finite {
                        Some(known) => known,
                        None => *finite.insert(unseen::are_finite::<L>(values, count, dv, room.row)),
                    };
                    if !finite {
                        let weights = [room.scores, room.correction].map(<*mut f32>::cast_const);
                        unseen::weigh::<L, F>(room.bounds, counts[1], weights, values, dv, state.result);
                        continue;
                    }
                }
                F::weigh::<L>(room.scores, room.correction, values, dv, counts, state.result);
            }
        }
    }

    /// Does to a block's scores what the call asks for besides the product.
    #[inline(always)]
    unsafe fn adjust<L: Lanes, F: Form>(
        &self,
        head: usize,
        [first, last]: [usize; 2],
        start: usize,
        count: usize,
    ) {
        let Work { task, unit, room, .. } = self;
        let (width, sequence) = (F::width::<L>(), &unit.sequence);
        // SAFETY: the promise of `run`; `bounds` has room for two numbers a row.
        unsafe {
            task.scores.cap::<L>(room.scores, F::scores_len::<L>(count));
            if let Some(slopes) = task.scores.slopes {
                room.bounds.write_bytes(0, 2 * width);
                for row in first..=last {
                    let slope = slopes.at([self.place(head, row)[1]]).cast::<f32>().read_unaligned();
                    let position = sequence.kv_len + (unit.first_row + row) / task.group();
                    let ahead = position as f64 - sequence.q_len as f64 - start as f64;
                    *room.bounds.add(row - first) = slope * core::f32::consts::LOG2_E;
                    *room.bounds.add(width + row - first) = ahead as f32;
                }
                F::slope::<L>(room.scores, room.bounds, [count, last - first + 1]);
            }
            for row in first..=last {
                let [token, head] = self.place(head, row);
                let [from, apart] = F::scores_of::<L>(row - first);
                let scores = room.scores.add(from);
                task.scores.mask::<L>([token, head, start], count, room.row, scores, apart);
            }
        }
    }

    /// Adds the sinks to the totals of a panel whose first row is `first`.
    #[inline(always)]
    unsafe fn add_sinks<L: Lanes, F: Form>(&self, total: &State, first: usize) {
        let (width, len) = (F::width::<L>(), F::result_len::<L>(self.task.padded_v()));
        let Some(sinks) = self.task.scores.sinks else { return };
        // SAFETY: the promise of `run`; the state of a chunk is free once the chunks are merged.
        unsafe {
            let sink = State::at(self.room.parts, width);
            sink.clear::<L>(width, len);
            for row in first..(first + F::rows::<L>()).min(self.unit.rows) {
                let value = sinks.at([self.place(0, row)[1]]).cast::<f32>().read_unaligned();
                *sink.max.add(row - first) = value * core::f32::consts::LOG2_E;
                *sink.sum.add(row - first) = 1.0;
            }
            merge::<L, F>(total, &sink, self.task.padded_v());
        }
    }

    /// Sets the scores of keys that a row does not see to −∞.
    #[inline(always)]
    unsafe fn hide<L: Lanes, F: Form>(&self, first: usize, last: usize, start: usize, count: usize) {
        let (width, bounds) = (F::width::<L>(), self.room.bounds);
        // SAFETY: the promise of `run`.
        unsafe {
            bounds.write_bytes(0, 2 * width);
            for row in first..=last {
                let keys = self.unit.visible(self.task, row);
                let [low, high] =
                    [keys.start, keys.end].map(|key| key.saturating_sub(start).min(count) as f32);
                *bounds.add(row - first) = low;
                *bounds.add(width + row - first) = high;
            }
            F::hide::<L>(self.room.scores, bounds, [count, last - first + 1]);
        }
    }

    /// Writes the totals as results.
    #[inline(always)]
    unsafe fn write<L: Lanes, F: Form>(&self, state: usize) {
        let Work { task, unit, room, .. } = self;
        let (dv, width) = (task.padded_v(), F::width::<L>());
        for panel in 0..self.panels {
            let first = panel * F::rows::<L>();
            // SAFETY: the promise of `run`.
            unsafe {
                let total = State::at(room.totals.add(panel * state), width);
                self.add_sinks::<L, F>(&total, first);
                normalize::<L, F>(&total, dv);
                for row in first..(first + F::rows::<L>()).min(unit.rows) {
                    let [token, head] = self.place(0, row);
                    F::take_result::<L>(total.result, row - first, room.row, dv);
                    let to = task.out.at([token, head, 0]);
                    write_row::<L>(task.out.dtype(), room.row, task.out.inner(), task.v_head_dim, to);
                    if let Some(lse) = task.lse {
                        let [max, sum] = [total.max, total.sum].map(|at| f64::from(*at.add(row - first)));
                        let value = ((max + sum.log2()) * core::f64::consts::LN_2) as f32;
                        lse.at([token, head]).cast::<f32>().write_unaligned(value);
                    }
                }
            }
        }
    }
}
