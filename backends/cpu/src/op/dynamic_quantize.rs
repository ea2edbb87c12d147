//! Numbers to codes, the scale of every block found on the way: native for every legal call.

use crate::op::args::{Args, enqueue};
use crate::quant::dynamic_quantize;
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::DynamicQuantize;
use portolan_ops::Result;
use portolan_ops::quant::DynamicQuantizeSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &DynamicQuantize) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &DynamicQuantizeSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { dynamic_quantize(exec.into(), spec, args.read("x"), args.write("codes"), args.write("scale")) };
    Ok(())
}
