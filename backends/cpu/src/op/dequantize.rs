//! Quantized weights as floats, by the contract's exact f32 rule.

use crate::op::args::{Args, enqueue};
use crate::op::rows::{RowSource, element, load_row, store_row};
use crate::queue::Exec;
use crate::simd::PAST;
use portolan_core::Launch;
use portolan_core::call::Dequantize;
use portolan_ops::{DType, DequantizeSpec, Result};

/// Rows one task converts.
const ROWS: usize = 8;

pub(crate) fn launch(launch: &Launch<'_>, op: &Dequantize) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &DequantizeSpec, args: &Args) -> Result<()> {
    let (n, k) = (spec.weight().n(), spec.weight().k());
    let source = RowSource::Quant(args.quant_parts());
    let out = args.write("out") as usize;
    // Rows of f32 that lie together need no line of their own.
    let direct = spec.out().dtype() == DType::F32 && spec.out().strides()[1] == 1;
    let past = n.saturating_mul(k).saturating_mul(size_of::<f32>()) >= PAST;
    exec.team.run_with(n.div_ceil(ROWS), exec.threads, &|task| {
        let mut values = vec![0f32; if direct { 0 } else { k }];
        for row in task * ROWS..n.min((task + 1) * ROWS) {
            let (place, out) = (element(spec.out(), row * k), out as *mut u8);
            // SAFETY: the row exists; core checked that the weight's tensors lie within live blocks, and the
            // output; each task writes its own rows of it.
            unsafe {
                if direct {
                    let line = core::slice::from_raw_parts_mut(out.cast::<f32>().add(place), k);
                    load_row(exec.isa, spec.weight(), &source, row, line, past);
                } else {
                    load_row(exec.isa, spec.weight(), &source, row, &mut values, false);
                    store_row(exec.isa, spec.out(), out, place, &values);
                }
            }
        }
    });
    Ok(())
}
