//! Rows of a weight by index, dequantized on the way.

use crate::op::args::{Args, enqueue};
use crate::op::rows::{RowSource, element, load_row, store_row};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Embedding;
use portolan_core::sync::atomic::{AtomicUsize, Ordering};
use portolan_ops::{EmbeddingSpec, OpError, Result, WeightSpec};

/// Rows one task copies: about a page of a small model's embedding each.
const ROWS: usize = 8;

pub(crate) fn launch(launch: &Launch<'_>, op: &Embedding) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &EmbeddingSpec, args: &Args) -> Result<()> {
    let (n, k) = (spec.weight().n(), spec.weight().k());
    let source = match spec.weight() {
        WeightSpec::Dense(_) => RowSource::Dense(args.read("weight")),
        _ => RowSource::Quant(args.quant_parts()),
    };
    let (ids, out) = (args.read("ids") as usize, args.write("out") as usize);
    let count = spec.ids().numel();
    let id_at = |row: usize| element(spec.ids(), row);
    let bad = AtomicUsize::new(usize::MAX);
    exec.team.run_with(count.div_ceil(ROWS), exec.threads, &|task| {
        let mut values = vec![0f32; k];
        for row in task * ROWS..count.min((task + 1) * ROWS) {
            // SAFETY: core checked that the ids lie within a live block.
            let id = unsafe { *(ids as *const i32).add(id_at(row)) };
            if id < 0 {
                values.fill(0.0);
            } else if (id as usize) < n {
                // SAFETY: the row exists; the weight's tensors lie within live blocks.
                unsafe { load_row(exec.isa, spec.weight(), &source, id as usize, &mut values, false) };
            } else {
                bad.fetch_min(row, Ordering::Relaxed);
                continue;
            }
            // SAFETY: each task writes its own rows of the output.
            unsafe { store_row(exec.isa, spec.out(), out as *mut u8, element(spec.out(), row * k), &values) };
        }
    });
    match bad.load(Ordering::Relaxed) {
        usize::MAX => Ok(()),
        row => {
            // SAFETY: as above.
            let id = unsafe { *(ids as *const i32).add(id_at(row)) };
            let what = format!("ids[{row}] is {id}, the weight has rows 0 to {}", n.saturating_sub(1));
            Err(OpError::Data { op: "embedding".into(), what })
        }
    }
}
