//! The logarithm of softmax from shifted rows and the logarithm of their exponentials' sum.

use super::begin;
use super::softmax::{Exponentials, exponentials};
use crate::call::{Binary, LogSoftmax};
use crate::launch::Launch;
use portolan_ops::kernel::{BinaryKind, UnaryKind};
use portolan_ops::{Result, Unsupported};

/// In f32: scale, subtract the row's maximum, subtract the logarithm of the sum of exponentials.
///
/// # Errors
/// As the parts; `Unsupported` where the stream denies compositions.
pub fn log_softmax(l: &Launch<'_>, op: &LogSoftmax, why: Unsupported) -> Result<()> {
    let p = begin(l, op, why)?;
    let Exponentials { shifted, sum, .. } = exponentials(&p, &op.require("x")?, op.spec().scale())?;
    p.unary_in_place(UnaryKind::Log, &sum)?;
    let out = op.require("out")?;
    p.result(&out, |out| p.run(Binary::new(BinaryKind::Sub, &shifted, &sum, out)?))
}
