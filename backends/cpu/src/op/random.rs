//! Random numbers: native for every legal call.

use crate::movement::random::random;
use crate::op::args::{Args, enqueue};
use crate::queue::Exec;
use portolan_core::Launch;
use portolan_core::call::Random;
use portolan_ops::Result;
use portolan_ops::kernel::RandomSpec;

pub(crate) fn launch(launch: &Launch<'_>, op: &Random) -> Result<()> {
    enqueue(launch, op, run)
}

fn run(exec: &Exec, spec: &RandomSpec, args: &Args) -> Result<()> {
    // SAFETY: the contract checked extents, strides and overlap; core, that every operand lies within a live
    // block which stream order protects until this call has run.
    unsafe { random(exec.into(), spec, args.read("counter"), args.write("out")) }
}
