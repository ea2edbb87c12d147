//! The network of a mixture of experts: expert by expert, some hundred rows at a time, each step on all threads.
//!
//! Rows of one expert are gathered, go through both products in the caches' reach, and are added to their tokens'
//! sums. Experts go in rising order, so every token's sum has one order. An expert without tokens is passed over, and
//! nothing of its weights is read.

use crate::activation::{GatePointers, swiglu};
use crate::moe::{Added, Grid, add_rows, data, gather_rows, store_rows};
use crate::op::args::{Args, enqueue_with_scratch};
use crate::op::grouped_gemm::ExpertPointers;
use crate::op::linear::{LayerPointers, layer};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::ExpertFfn;
use portolan_ops::moe::{ExpertFfnSpec, expert_ffn as names};
use portolan_ops::{OpError, Result};

const OP: &str = "expert_ffn";

/// Rows of one expert that are worked on at once. Reading its weights once more for as many others costs little
/// beside their products, and bounds the scratch.
const ROWS: usize = 512;
/// What the parts of the scratch are aligned to.
const LINE: usize = 64;

/// Where the parts of the scratch begin, and its length.
struct Parts {
    /// i32, the places of all tokens in the order of their experts.
    places: usize,
    /// The gathered rows, of x's type.
    rows: usize,
    /// f32, the first product.
    gate_up: usize,
    /// f32, the unit.
    hidden: usize,
    /// f32, the second product.
    y: usize,
    /// f32, the sums of all tokens.
    sums: usize,
    bytes: usize,
}

impl Parts {
    fn of(spec: &ExpertFfnSpec) -> Result<Self> {
        let places = spec.expert_ids().numel();
        let rows = places.min(ROWS);
        let mut end = Some(0usize);
        let mut part = |count: usize, width: usize, bytes: usize| {
            let start = end;
            let len = count.checked_mul(width).and_then(|n| n.checked_mul(bytes));
            end = len
                .and_then(|len| len.checked_next_multiple_of(LINE))
                .zip(start)
                .and_then(|(n, s)| s.checked_add(n));
            start.unwrap_or_default()
        };
        let parts = Self {
            places: part(places, 1, 4),
            rows: part(rows, spec.gate_up().k(), spec.x().dtype().bytes_for(1)),
            gate_up: part(rows, spec.gate_up().n(), 4),
            hidden: part(rows, spec.inner(), 4),
            y: part(rows, spec.down().n(), 4),
            sums: part(spec.tokens(), spec.down().n(), 4),
            bytes: 0,
        };
        match end {
            Some(bytes) => Ok(Self { bytes, ..parts }),
            None => {
                Err(OpError::shape(OP, format!("x is {}: the scratch is not addressable", spec.x().shape())))
            }
        }
    }
}

pub(crate) fn launch(launch: &Launch<'_>, op: &ExpertFfn) -> Result<()> {
    enqueue_with_scratch(launch, op, Parts::of(op.spec())?.bytes, run)
}

fn run(exec: &Exec, spec: &ExpertFfnSpec, args: &Args) -> Result<()> {
    let (parts, scratch) = (Parts::of(spec)?, args.write("scratch"));
    let at = |part: usize| scratch.wrapping_add(part);
    let places = at(parts.places).cast::<i32>();
    // SAFETY: the ids exist, and the part holds a place for each.
    let ends = unsafe { sort_places(spec, args.read("expert_ids"), places)? };
    let sums = at(parts.sums).cast::<f32>();
    // SAFETY: the part holds them; nobody else writes to the scratch of this call.
    unsafe { sums.write_bytes(0, spec.tokens() * spec.down().n()) };
    let gate_up = ExpertPointers::of(args, spec.gate_up(), &names::GATE_UP);
    let down = ExpertPointers::of(args, spec.down(), &names::DOWN);
    let invariant = args.batch_invariant();
    let mut first = 0;
    for (expert, end) in ends.into_iter().enumerate() {
        while first < end {
            let count = ROWS.min(end - first);
            // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
            // block which stream order protects until this call has run. The parts of the scratch hold `count` rows;
            // places are those of tokens.
            unsafe {
                let own = core::slice::from_raw_parts(places.add(first), count);
                gather_rows(exec, spec.x(), args.read("x"), own, spec.top_k(), at(parts.rows));
                let pointers = LayerPointers {
                    x: at(parts.rows),
                    weight: gate_up.expert(expert),
                    bias: args.read("gate_up_bias"),
                    out: at(parts.gate_up),
                };
                layer(exec, &spec.gate_up_layer(expert, count)?, &pointers, invariant)?;
                let both = at(parts.gate_up).cast_const();
                let gate = GatePointers { gate: both, up: both, out: at(parts.hidden) };
                swiglu(&exec.team, exec.threads, exec.isa, &spec.unit(count)?, gate);
                let pointers = LayerPointers {
                    x: at(parts.hidden),
                    weight: down.expert(expert),
                    bias: args.read("down_bias"),
                    out: at(parts.y),
                };
                layer(exec, &spec.down_layer(expert, count)?, &pointers, invariant)?;
                let added = Added {
                    y: at(parts.y).cast(),
                    places: own,
                    top_k: spec.top_k(),
                    weights: Grid::of(spec.weights()),
                    factors: args.read("weights").cast(),
                    sums,
                    width: spec.down().n(),
                };
                add_rows(exec, &added);
            }
            first += count;
        }
    }
    // SAFETY: as above; the sums are complete.
    unsafe { store_rows(exec, sums, spec.out(), args.write("out")) };
    Ok(())
}

/// Writes the places of all tokens in the order of their experts, and of tokens within; gives where each expert's end.
///
/// # Safety
/// The ids exist; `places` holds one for each.
unsafe fn sort_places(spec: &ExpertFfnSpec, ids: *const u8, places: *mut i32) -> Result<Vec<usize>> {
    let (k, experts, grid) = (spec.top_k(), spec.gate_up().count(), Grid::of(spec.expert_ids()));
    // SAFETY: the place exists.
    let id = |place: usize| unsafe { *ids.cast::<i32>().add(grid.at(place / k, place % k)) };
    let mut ends = Vec::new();
    if ends.try_reserve_exact(experts).is_err() {
        return Err(OpError::internal(OP, format!("no host memory for the counts of {experts} experts")));
    }
    ends.resize(experts, 0usize);
    let count = spec.expert_ids().numel();
    for place in 0..count {
        if let Ok(expert) = usize::try_from(id(place)) {
            let Some(end) = ends.get_mut(expert) else {
                let (token, j) = (place / k, place % k);
                return Err(data(
                    OP,
                    format!("expert_ids[{token}, {j}] is {expert}, there are {experts} experts"),
                ));
            };
            *end += 1;
        }
    }
    // Counts to starts; filling moves each start to its end.
    let mut start = 0;
    for end in &mut ends {
        (start, *end) = (start + *end, start);
    }
    for place in 0..count {
        if let Ok(expert) = usize::try_from(id(place)) {
            // SAFETY: there are as many places as were counted.
            unsafe { *places.add(ends[expert]) = place as i32 };
            ends[expert] += 1;
        }
    }
    Ok(ends)
}
