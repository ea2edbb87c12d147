//! One piece of attention: a set of query rows that share a key head, over all of their keys or one chunk.
//!
//! Keys are taken in chunks, chunks in blocks, both at fixed positions of the sequence. Each chunk starts
//! afresh and is then merged, in order: it makes no difference whether the chunks of a row are computed here
//! one after another, or elsewhere side by side.

use super::few::Few;
use super::form::{BLOCK, Form};
use super::sequences::Sequence;
use super::softmax::State;
use super::task::AttentionTask;
use super::tile::Tile;
use super::work::{Room, Work};
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
    pub(super) fn visible(&self, task: &AttentionTask, row: usize) -> Range<usize> {
        task.visible(self.first_row + row, self.sequence.q_len, self.sequence.kv_len)
    }

    /// The keys that any row from `first` to `last` sees: both ends grow with the row.
    pub(super) fn visible_to(&self, task: &AttentionTask, first: usize, last: usize) -> Range<usize> {
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
