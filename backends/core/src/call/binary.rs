//! [`Binary`]: a function of two broadcast operands.

use super::Binary;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::kernel::{BinaryKind, BinarySpec};

impl Binary {
    /// `out = kind(a, b)`; `out` may be `a` itself.
    ///
    /// # Errors
    /// As [`BinarySpec::new`] and [`crate::Call::bind`].
    pub fn new(kind: BinaryKind, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(BinarySpec::new(kind, a.spec(), b.spec(), out.spec())?, &[a, b, out])
    }

    /// `out = kind(a, value)`.
    ///
    /// # Errors
    /// As [`BinarySpec::scalar`] and [`crate::Call::bind`].
    pub fn scalar(kind: BinaryKind, a: &Tensor, value: f64, out: &mut Tensor) -> Result<Self> {
        Self::bind(BinarySpec::scalar(kind, a.spec(), value, out.spec())?, &[a, out])
    }

    /// `out = a + b`.
    ///
    /// # Errors
    /// As [`Binary::new`].
    pub fn add(a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::new(BinaryKind::Add, a, b, out)
    }
}

/// `kind(a, b)`; see [`BinarySpec`].
///
/// # Errors
/// As [`Binary::new`] and [`Stream::run`].
pub fn binary(stream: &Stream, kind: BinaryKind, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&BinarySpec::out_spec(kind, a.spec(), b.spec())?)?;
    stream.run(Binary::new(kind, a, b, &mut out)?)?;
    Ok(out)
}
