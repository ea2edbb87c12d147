//! Quantized weights as floats, by the contract's exact f32 rule.

use crate::op::args::{Args, enqueue};
use crate::op::rows::{RowSource, element, load_row, store_row};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Dequantize;
use portolan_ops::{DequantizeSpec, Result};

/// Rows one task converts.
const ROWS: usize = 8;

pub(crate) fn launch(launch: &Launch<'_>, op: &Dequantize) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &DequantizeSpec, args: &Args) -> Result<()> {
    let (n, k) = (spec.weight().n(), spec.weight().k());
    let source = RowSource::Quant(args.quant_parts());
    let out = args.write("out") as usize;
    exec.team.run_with(n.div_ceil(ROWS), exec.threads, &|task| {
        let mut values = vec![0f32; k];
        for row in task * ROWS..n.min((task + 1) * ROWS) {
            // SAFETY: the row exists; core checked that the weight's tensors lie within live blocks.
            unsafe { load_row(spec.weight(), &source, row, &mut values) };
            // SAFETY: each task writes its own rows of the output.
            unsafe { store_row(spec.out(), out as *mut u8, element(spec.out(), row * k), &values) };
        }
    });
    Ok(())
}
