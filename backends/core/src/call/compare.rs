//! [`Compare`] and [`Select`]: conditions, and choices by them.

use super::{Compare, Select};
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::kernel::{CompareKind, CompareSpec, SelectSpec};

impl Compare {
    /// `out = a ∘ b`, bool.
    ///
    /// # Errors
    /// As [`CompareSpec::new`] and [`crate::Call::bind`].
    pub fn new(kind: CompareKind, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(CompareSpec::new(kind, a.spec(), b.spec(), out.spec())?, &[a, b, out])
    }

    /// `out = a ∘ value`, bool.
    ///
    /// # Errors
    /// As [`CompareSpec::scalar`] and [`crate::Call::bind`].
    pub fn scalar(kind: CompareKind, a: &Tensor, value: f64, out: &mut Tensor) -> Result<Self> {
        Self::bind(CompareSpec::scalar(kind, a.spec(), value, out.spec())?, &[a, out])
    }
}

impl Select {
    /// `out = cond ? a : b`; `out` may be `a` or `b` itself.
    ///
    /// # Errors
    /// As [`SelectSpec::new`] and [`crate::Call::bind`].
    pub fn new(cond: &Tensor, a: &Tensor, b: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(SelectSpec::new(cond.spec(), a.spec(), b.spec(), out.spec())?, &[cond, a, b, out])
    }
}

/// `a ∘ b`; see [`CompareSpec`].
///
/// # Errors
/// As [`Compare::new`] and [`Stream::run`].
pub fn compare(stream: &Stream, kind: CompareKind, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&CompareSpec::out_spec(kind, a.spec(), b.spec())?)?;
    stream.run(Compare::new(kind, a, b, &mut out)?)?;
    Ok(out)
}

/// `cond ? a : b`; see [`SelectSpec`].
///
/// # Errors
/// As [`Select::new`] and [`Stream::run`].
pub fn select(stream: &Stream, cond: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&SelectSpec::out_spec(cond.spec(), a.spec(), b.spec())?)?;
    stream.run(Select::new(cond, a, b, &mut out)?)?;
    Ok(out)
}
