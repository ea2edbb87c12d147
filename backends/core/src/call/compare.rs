//! [`Compare`] and [`Select`]: conditions, and choices by them.

use super::{Compare, Select};
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::kernel::{CompareKind, CompareSpec, SelectSpec};
use portolan_ops::{OpError, Result, Shape};

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

/// `value` where the mask holds, `x` elsewhere; the mask broadcasts to `x`. See [`SelectSpec`].
///
/// # Errors
/// `Shape` when the mask does not broadcast to `x`; `Attribute` for a number that is not of `x`'s type; as
/// [`Select::new`] and [`Stream::run`].
pub fn masked_fill(stream: &Stream, x: &Tensor, mask: &Tensor, value: f64) -> Result<Tensor> {
    let fits = mask.shape().broadcast(x.shape()).is_ok_and(|joint| joint == *x.shape());
    if !fits {
        let what = format!("x is {}, mask is {}: it does not broadcast to x", x.shape(), mask.shape());
        return Err(OpError::shape("masked_fill", what));
    }
    let value = super::copy::full(stream, x.dtype(), &Shape::SCALAR, value)?;
    select(stream, mask, &value, x)
}
