//! Products of every expert's rows: one layer after the other, each on all threads. An expert without rows is
//! passed over, and nothing of its weight is read.

use crate::elementwise::walk::Base;
use crate::moe::{Grid, Lines, clear, data};
use crate::op::args::{Args, enqueue};
use crate::op::linear::{LayerPointers, WeightPointer, layer};
use crate::quant::QuantParts;
use crate::queue::Exec;
use crate::rows::for_each_range;
use core::ops::Range;
use portolan_core::Launch;
use portolan_core::call::GroupedGemm;
use portolan_ops::moe::{ExpertNames, ExpertsSpec, GroupedGemmSpec};
use portolan_ops::{Result, WeightSpec};

const OP: &str = "grouped_gemm";

pub(crate) fn launch(launch: &Launch<'_>, op: &GroupedGemm) -> Result<()> {
    enqueue(launch, op, run)
}

/// Where the weights of all experts lie.
pub(crate) struct ExpertPointers {
    first: WeightPointer,
    /// Bytes from one expert to the next: codes (or dense, or packed), scale, offset, outer, outer offset.
    strides: [usize; 5],
}

impl ExpertPointers {
    /// Those of a stack whose operands have these names.
    pub(crate) fn of(args: &Args, experts: &ExpertsSpec, names: &ExpertNames) -> Self {
        let first = match experts.one() {
            WeightSpec::Dense(_) => WeightPointer::Dense(args.read(names.dense)),
            WeightSpec::Packed(_) => WeightPointer::Packed(args.read(names.packed)),
            _ => {
                let [codes, scale, offset, outer, outer_offset] = names.quant.map(|name| args.read(name));
                WeightPointer::Quant(QuantParts { codes, scale, offset, outer, outer_offset })
            }
        };
        Self { first, strides: experts.expert_strides() }
    }

    /// One expert's weight, as the first one's spec describes it.
    pub(crate) fn expert(&self, index: usize) -> WeightPointer {
        let at = |pointer: *const u8, slot: usize| match pointer.is_null() {
            true => pointer,
            false => pointer.wrapping_add(index * self.strides[slot]),
        };
        match self.first {
            WeightPointer::Dense(pointer) => WeightPointer::Dense(at(pointer, 0)),
            WeightPointer::Packed(pointer) => WeightPointer::Packed(at(pointer, 0)),
            WeightPointer::Quant(parts) => WeightPointer::Quant(QuantParts {
                codes: at(parts.codes, 0),
                scale: at(parts.scale, 1),
                offset: at(parts.offset, 2),
                outer: at(parts.outer, 3),
                outer_offset: at(parts.outer_offset, 4),
            }),
        }
    }
}

fn run(exec: &Exec, spec: &GroupedGemmSpec, args: &Args) -> Result<()> {
    let experts = spec.weight().count();
    let weights = ExpertPointers::of(args, spec.weight(), &ExpertNames::WEIGHT);
    // All are looked at before anything is written.
    for expert in 0..experts {
        rows_of(spec, args, expert)?;
    }
    for expert in 0..experts {
        let rows = rows_of(spec, args, expert)?;
        if rows.is_empty() {
            continue;
        }
        let pointers = LayerPointers {
            x: args.read("x"),
            weight: weights.expert(expert),
            bias: args.read("bias"),
            out: args.write("out"),
        };
        // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
        // block which stream order protects until this call has run. The rows are within the operands.
        unsafe { layer(exec, &spec.layer(expert, rows)?, &pointers, args.batch_invariant())? };
    }
    clear_others(exec, spec, args)
}

/// The rows of an expert, within the matrix or its room.
fn rows_of(spec: &GroupedGemmSpec, args: &Args, expert: usize) -> Result<Range<usize>> {
    let limit = spec.x().dims()[spec.x().rank() - 2];
    let numbers = spec.offsets().or(spec.counts());
    let (name, grid) = (if spec.offsets().is_some() { "offsets" } else { "counts" }, numbers.map(Grid::of));
    let number = |at: usize| {
        // SAFETY: the operand exists, with as many elements as are asked for.
        grid.map_or(0, |grid| unsafe { *args.read(name).cast::<i32>().add(grid.at(at, 0)) })
    };
    let (start, end) = match spec.offsets() {
        Some(_) => (number(expert), number(expert + 1)),
        None => (0, number(expert)),
    };
    let whole = |row: i32| usize::try_from(row).ok().filter(|&row| row <= limit);
    match (whole(start), whole(end)) {
        (Some(start), Some(end)) if start <= end => Ok(start..end),
        _ => {
            let what = format!("{name}: expert {expert} has rows {start} to {end}, there are {limit}");
            Err(data(OP, what))
        }
    }
}

/// Writes zeros to the rows that belong to no expert.
fn clear_others(exec: &Exec, spec: &GroupedGemmSpec, args: &Args) -> Result<()> {
    let (lines, bytes) = (Lines::of(spec.out()), spec.out().dtype().bytes_for(1));
    let (n, to) = (spec.out().shape().last(), Base::write(args.write("out")));
    let clear_range = |rows: Range<usize>| {
        let first = rows.start;
        for_each_range(&exec.team, exec.threads, rows.len(), n, &|range| {
            for row in range {
                // SAFETY: the row is one of out, and no expert's.
                unsafe { clear(bytes, to, n, lines.at(first + row), lines.step) };
            }
        });
    };
    let (experts, rows) = (spec.weight().count(), spec.out().shape().rows());
    if spec.offsets().is_some() {
        let first = if experts > 0 { rows_of(spec, args, 0)?.start } else { rows };
        let end = if experts > 0 { rows_of(spec, args, experts - 1)?.end } else { rows };
        clear_range(0..first);
        clear_range(end..rows);
        return Ok(());
    }
    let room = spec.out().dims()[1];
    for expert in 0..experts {
        clear_range(expert * room + rows_of(spec, args, expert)?.end..(expert + 1) * room);
    }
    Ok(())
}
