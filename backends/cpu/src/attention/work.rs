//! What is done with one unit of attention: queries, chunks of keys block by block, results.
//!
//! This is the order of things only; whatever computes over lanes is compiled apart, here below or with its form.

use super::block::{Addresses, CacheRows};
use super::form::{self, BLOCK, Form};
use super::softmax::{State, clear, merge, normalize};
use super::task::AttentionTask;
use super::unit::{CHUNK, Step, Unit};
use super::unseen;
use super::view::{read_row, write_row};
use crate::simd::{Lanes, apart};

/// Working memory, in floats.
pub(super) struct Room {
    /// [`BLOCK`] rows of keys and of values; of keys only where values are the first columns of keys.
    pub(super) keys: *mut f32,
    pub(super) values: *mut f32,
    /// `[BLOCK][width]`.
    pub(super) scores: *mut f32,
    /// `[width]`, and the first and last visible key of each lane, `[2][width]`.
    pub(super) correction: *mut f32,
    pub(super) bounds: *mut f32,
    /// One row of queries, results or a mask.
    pub(super) row: *mut f32,
    /// Of every panel: queries, state of the current chunk, state of the chunks before.
    pub(super) queries: *mut f32,
    pub(super) parts: *mut f32,
    pub(super) totals: *mut f32,
}

pub(super) struct Work<'a> {
    pub(super) task: &'a AttentionTask,
    pub(super) unit: &'a Unit,
    pub(super) panels: usize,
    pub(super) room: Room,
}

impl Work<'_> {
    /// Does one step; `state` is the floats of a panel's state.
    ///
    /// # Safety
    /// The promise of `unit::run`; the room is as large as `unit` measures.
    pub(super) unsafe fn step<L: Lanes, F: Form>(&self, step: Step, state: usize) {
        let all = self.unit.chunks(self.task);
        let (chunks, states, apart) = match step {
            Step::Chunks([first, end], states, apart) => (first..end, states, apart),
            Step::Whole => (all.clone(), self.room.parts, 0),
            Step::Finish(states) => (0..0, states, 0),
        };
        // SAFETY: the promise of `run`.
        unsafe {
            if !chunks.is_empty() {
                load_queries::<L, F>(self);
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

    unsafe fn clear<L: Lanes, F: Form>(&self, states: *mut f32, state: usize) {
        for panel in 0..self.panels {
            // SAFETY: the promise of `run`.
            unsafe {
                let state = State::at(states.add(panel * state), F::width::<L>());
                clear::<L, F>(&state, self.task.padded_v());
            }
        }
    }

    /// Merges states into the totals.
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
    fn place(&self, head: usize, row: usize) -> [usize; 2] {
        let (row, group) = (self.unit.first_row + row, self.task.group());
        [self.unit.sequence.token + row / group, (self.unit.head + head) * group + row % group]
    }

    /// The state of every panel of every head over the keys of one chunk of those up to `last`; states of heads lie
    /// `apart`.
    ///
    /// Heads take turns at each block: in the usual layouts they are neighbours in memory, so the pages and
    /// lines of a block are opened once. Head after head over the chunk, each row would cost a page walk.
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
                form::score::<L, F>(query, &keys, dk, counts, room.scores);
                if !task.scores.is_plain() {
                    self.adjust::<L, F>(head, [first, last], start, count);
                }
                if !all {
                    self.hide::<L, F>(first, last, start, count);
                }
                let state = State::at(states.add(panel * state), width);
                form::weights::<L, F>(room.scores, counts, &state, room.correction);
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
                form::weigh::<L, F>(room.scores, room.correction, values, dv, counts, state.result);
            }
        }
    }

    /// Does to a block's scores what the call asks for besides the product.
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
                form::slope::<L, F>(room.scores, room.bounds, [count, last - first + 1]);
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
    unsafe fn add_sinks<L: Lanes, F: Form>(&self, total: &State, first: usize) {
        let Some(sinks) = self.task.scores.sinks else { return };
        // SAFETY: the promise of `run`; the state of a chunk is free once the chunks are merged.
        unsafe {
            let sink = State::at(self.room.parts, F::width::<L>());
            clear::<L, F>(&sink, self.task.padded_v());
            for row in first..(first + F::rows::<L>()).min(self.unit.rows) {
                let value = sinks.at([self.place(0, row)[1]]).cast::<f32>().read_unaligned();
                *sink.max.add(row - first) = value * core::f32::consts::LOG2_E;
                *sink.sum.add(row - first) = 1.0;
            }
            merge::<L, F>(total, &sink, self.task.padded_v());
        }
    }

    /// Sets the scores of keys that a row does not see to −∞.
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
            form::hide::<L, F>(self.room.scores, bounds, [count, last - first + 1]);
        }
    }

    /// Writes the totals as results.
    unsafe fn write<L: Lanes, F: Form>(&self, state: usize) {
        for panel in 0..self.panels {
            let first = panel * F::rows::<L>();
            // SAFETY: the promise of `run`.
            unsafe {
                let total = State::at(self.room.totals.add(panel * state), F::width::<L>());
                self.add_sinks::<L, F>(&total, first);
                normalize::<L, F>(&total, self.task.padded_v());
                write_rows::<L, F>(self, &total, first);
            }
        }
    }
}

apart! {
    /// Reads the queries, scaled so that scores come out in units of log 2; 0 in lanes without a row.
    ///
    /// # Safety
    /// The promise of `run`.
    unsafe fn load_queries<'a, L, F: Form>(work: &'a Work<'a>) {
        let Work { task, unit, room, .. } = work;
        let (dim, padded, len) = (task.head_dim, task.padded_k(), F::query_len::<L>(task.padded_k()));
        let scale = task.scale * core::f32::consts::LOG2_E;
        // SAFETY: the promise of `run`.
        unsafe {
            room.queries.write_bytes(0, unit.heads * work.panels * len);
            room.row.write_bytes(0, padded);
            for (head, row) in (0..unit.heads).flat_map(|head| (0..unit.rows).map(move |row| (head, row))) {
                let [token, q_head] = work.place(head, row);
                read_row::<L>(task.q.dtype(), task.q.at([token, q_head, 0]), task.q.inner(), dim, room.row);
                for i in 0..dim {
                    *room.row.add(i) *= scale;
                }
                let (panel, row) = (head * work.panels + row / F::rows::<L>(), row % F::rows::<L>());
                F::put_query::<L>(room.queries.add(panel * len), row, room.row, padded);
            }
        }
    }

    /// Writes the results of the rows of a panel, the first of them `first`.
    ///
    /// # Safety
    /// The promise of `run`.
    unsafe fn write_rows<'a, L, F: Form>(work: &'a Work<'a>, total: &'a State, first: usize) {
        let Work { task, unit, room, .. } = work;
        for row in first..(first + F::rows::<L>()).min(unit.rows) {
            let [token, head] = work.place(0, row);
            // SAFETY: the promise of `run`.
            unsafe {
                F::take_result::<L>(total.result, row - first, room.row, task.padded_v());
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
