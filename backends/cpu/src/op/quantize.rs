//! Numbers to codes by given scales: native for every legal call.

use crate::op::args::{Args, enqueue};
use crate::quant::quantize;
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Quantize;
use portolan_ops::Result;
use portolan_ops::quant::QuantizeSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Quantize) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &QuantizeSpec, args: &Args) -> Result<()> {
    let (x, scale, offset) = (args.read("x"), args.read("scale"), args.read("offset"));
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { quantize(exec.into(), spec, x, scale, offset, args.write("codes")) };
    Ok(())
}
