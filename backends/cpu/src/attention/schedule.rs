//! Cuts an attention call into units and hands them to the team.
//!
//! Many units go out whole; few, and those of decode, are split over their chunks of keys first. Either way
//! every row goes through the same operations in the same order, so the choice may depend on the threads.

use super::form::BLOCK;
use super::sequences::Sequence;
use super::task::AttentionTask;
use super::unit::{Step, UNIT_ROWS, Unit, run, state_len};
use super::view::View;
use crate::pool::scratch;
use crate::{Isa, Team};
use core::ops::Range;
use portolan_ops::Result;

/// Pieces for each thread from which on they balance well enough.
const PIECES_PER_THREAD: usize = 4;

/// Runs of chunks for each thread: within one, what comes next is asked of memory in time.
const RUNS_PER_THREAD: usize = 2;

/// Keys, or values, of a block of all heads of a piece, at most: with what is asked for ahead, and values beside keys,
/// four times as much has its place in a second-level cache of 1 MiB.
const BLOCK_BYTES: usize = 192 << 10;

/// Rows up to which reading the cache is the work: then its order decides, see [`split`].
const DECODE_ROWS: usize = 16;

/// States of split units above this are not kept; the units then stay whole.
const MAX_STATE_BYTES: usize = 256 << 20;

/// Computes attention.
///
/// # Errors
/// `Data` when a length is out of range or a needed page is absent; nothing is written then.
///
/// # Safety
/// The task's buffers are alive, hold what its contract says and are not touched by others meanwhile, results
/// overlap nothing, `plan` accepted the query, and the processor has `isa`.
pub(crate) unsafe fn attention(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    task: &AttentionTask,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let (sequences, used) = unsafe { task.lengths.read(task.op)? };
    if let Some(table) = &task.table {
        for s in &sequences {
            // SAFETY: the lengths are in range, and their bound is what the table reaches.
            unsafe { table.check(task.op, s.index, task.mask.visible_to_any(s.q_len, s.kv_len))? };
        }
    }
    // SAFETY: the caller's promise; rows from `used` on belong to no sequence.
    unsafe {
        clear_rows(task, used);
        attend(team, max_threads, isa, task, &sequences);
    }
    Ok(())
}

/// Computes the rows of sequences whose lengths, pages and lists are checked.
///
/// # Safety
/// As [`attention`].
pub(super) unsafe fn attend(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    task: &AttentionTask,
    sequences: &[Sequence],
) {
    if task.num_kv_heads == 0 || task.num_heads == 0 {
        return;
    }
    let plan = Plan::new(task, sequences);
    let threads = team.threads().min(max_threads).max(1);
    let decode = sequences.iter().all(|s| s.q_len * plan.group <= DECODE_ROWS);
    if decode || plan.units < PIECES_PER_THREAD * threads {
        // SAFETY: the caller's promise.
        if unsafe { split(team, max_threads.min(threads), isa, task, &plan) } {
            return;
        }
    }
    team.run_with(plan.units, max_threads, &|i| {
        // Later rows of a sequence see more keys: the long units first.
        // SAFETY: the caller's promise; units share no row, and lengths and pages are checked.
        unsafe { run(isa, task, &plan.unit(plan.units - 1 - i), Step::Whole) }
    });
}

/// The units of a call, numbered.
struct Plan<'a> {
    sequences: &'a [Sequence],
    /// Units of all sequences up to and with each one, for one key head.
    ends: Vec<usize>,
    group: usize,
    heads: usize,
    units: usize,
}

impl<'a> Plan<'a> {
    fn new(task: &AttentionTask, sequences: &'a [Sequence]) -> Self {
        let group = task.group();
        let mut end = 0;
        let ends: Vec<usize> = sequences
            .iter()
            .map(|s| {
                end += (s.q_len * group).div_ceil(UNIT_ROWS);
                end
            })
            .collect();
        Self { sequences, ends, group, heads: task.num_kv_heads, units: end * task.num_kv_heads }
    }

    fn unit(&self, number: usize) -> Unit {
        let (block, head) = (number / self.heads, number % self.heads);
        let index = self.ends.partition_point(|&end| end <= block);
        let before = if index == 0 { 0 } else { self.ends[index - 1] };
        let sequence = self.sequences[index];
        let first_row = (block - before) * UNIT_ROWS;
        Unit {
            sequence,
            head,
            heads: 1,
            first_row,
            rows: (sequence.q_len * self.group - first_row).min(UNIT_ROWS),
        }
    }
}

/// A unit whose chunks are computed apart.
struct Split {
    unit: Unit,
    chunks: Range<usize>,
    /// Floats of the state of one chunk, and where the first one lies.
    state: usize,
    offset: usize,
}

/// Computes every chunk of every unit on its own, then merges; false, and nothing done, where that does not
/// pay or takes too much memory.
///
/// A piece is a run of chunks of as many key heads as leave pieces enough for all threads.
///
/// # Safety
/// As [`attention`].
unsafe fn split(team: &Team, threads: usize, isa: Isa, task: &AttentionTask, plan: &Plan<'_>) -> bool {
    let (mut pieces, mut floats) = (0usize, 0usize);
    let splits: Vec<Split> = (0..plan.units)
        .map(|number| {
            let unit = plan.unit(number);
            let (chunks, state) = (unit.chunks(task), state_len(isa, task, unit.rows));
            let offset = floats;
            pieces += chunks.len();
            floats = floats.saturating_add(state.saturating_mul(chunks.len()));
            Split { unit, chunks, state, offset }
        })
        .collect();
    if pieces <= plan.units || floats > MAX_STATE_BYTES / size_of::<f32>() {
        return false;
    }
    let row_bytes = (task.k.width() * task.head_dim).max(task.v.width() * task.v_head_dim).max(1);
    let mut heads = plan.heads.min(BLOCK_BYTES / (BLOCK * row_bytes)).max(1);
    while heads > 1 && pieces / heads < PIECES_PER_THREAD * threads {
        heads = heads.div_ceil(2);
    }
    // The units of one set of rows differ in nothing but the head, so they have the same chunks.
    let sets = (plan.units / plan.heads).max(1);
    let runs = RUNS_PER_THREAD * threads;
    let length = ((pieces / plan.heads).saturating_sub(1) / runs).max(1);
    let mut work: Vec<(Range<usize>, [usize; 2])> = Vec::new();
    for set in 0..sets {
        let units = set * plan.heads..(set + 1) * plan.heads;
        let chunks = splits[units.start].chunks.clone();
        let mut chunk = chunks.start;
        while chunk < chunks.end {
            let end = chunk + length;
            // What is left over at the very end is cut finer, so that all threads finish together.
            let done = sets == 1 && chunk - chunks.start >= runs * length;
            let rest = set + 1 == sets && (done || end > chunks.end);
            let heads = if rest { heads.div_ceil(runs) } else { heads };
            let end = end.min(chunks.end);
            for first in units.clone().step_by(heads) {
                work.push((first..(first + heads).min(units.end), [chunk, end]));
            }
            chunk = end;
        }
    }
    scratch::with(floats * size_of::<f32>(), |states| {
        let states = States(states.cast());
        team.run_with(work.len(), threads, &|piece| {
            let (units, chunks) = &work[piece];
            let first = &splits[units.start];
            let apart = first.chunks.len() * first.state;
            let to = states.at(first.offset + (chunks[0] - first.chunks.start) * first.state);
            let unit = Unit { heads: units.len(), ..first.unit };
            // SAFETY: the promise of `attention`; every chunk of every unit has its own state.
            unsafe { run(isa, task, &unit, Step::Chunks(*chunks, to, apart)) }
        });
        team.run_with(splits.len(), threads, &|i| {
            let split = &splits[i];
            // SAFETY: the promise of `attention`; all states are written, units share no row.
            unsafe { run(isa, task, &split.unit, Step::Finish(states.at(split.offset))) }
        });
    });
    true
}

/// Where the states of split units lie.
struct States(*mut f32);

// SAFETY: an address; each task of a region writes its own part of the memory (see `split`).
unsafe impl Sync for States {}

impl States {
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Writes 0, and −∞ as lse, into the rows from `first` on.
///
/// # Safety
/// As [`attention`].
pub(super) unsafe fn clear_rows(task: &AttentionTask, first: usize) {
    let zeros = |view: &View<3>, token: usize, head: usize| {
        for i in 0..task.v_head_dim {
            // SAFETY: an element of out; all types of results have all bits 0 for 0.
            unsafe { view.at([token, head, i]).write_bytes(0, view.width()) };
        }
    };
    for token in first..task.lengths.tokens {
        for head in 0..task.num_heads {
            zeros(&task.out, token, head);
            if let Some(lse) = task.lse {
                // SAFETY: an element of lse.
                unsafe { lse.at([token, head]).cast::<f32>().write_unaligned(f32::NEG_INFINITY) };
            }
        }
    }
}
