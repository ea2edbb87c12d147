//! The residual sum, then the norm of it.

use super::begin;
use super::rms_norm::normalise;
use crate::call::{AddRmsNorm, Binary};
use crate::launch::Launch;
use portolan_ops::{Result, Unsupported};

/// Adds x to the residual in place, then normalises the rounded sum.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn add_rms_norm(l: &Launch<'_>, op: &AddRmsNorm, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let residual = op.require("residual")?;
    // The sum of two narrow floats is taken in f32 and rounded once by the operator itself.
    let x = p.cast(&op.require("x")?, residual.dtype())?;
    p.run(Binary::add(&residual, &x, &mut residual.clone())?)?;
    normalise(&p, &p.f32(&residual)?, op.tensor("weight"), op.spec().eps(), &op.require("out")?)
}
