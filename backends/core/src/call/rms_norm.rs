//! [`RmsNorm`] and [`AddRmsNorm`].

use super::{AddRmsNorm, RmsNorm};
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::norm::{AddRmsNormSpec, RmsNormSpec};
use portolan_ops::{OpError, Result, expect_dims};

impl RmsNorm {
    /// `out = x / √(mean(x²) + eps)`; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`RmsNormSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, out: &mut Tensor, eps: f32) -> Result<Self> {
        Self::bind(RmsNormSpec::new(x.spec(), out.spec(), eps)?, &[x, out])
    }

    /// Multiplies every row by `weight`, or each of the groups `[.., groups, n]` by its own.
    ///
    /// # Errors
    /// As [`RmsNormSpec::with_weight`] and [`crate::Call::bind`].
    pub fn weight(self, weight: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_weight(weight.spec())?, &[("weight", weight)])
    }
}

impl AddRmsNorm {
    /// `residual += x`, then `out = residual / √(mean(residual²) + eps)`.
    ///
    /// # Errors
    /// As [`AddRmsNormSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, residual: &mut Tensor, out: &mut Tensor, eps: f32) -> Result<Self> {
        Self::bind(AddRmsNormSpec::new(x.spec(), residual.spec(), out.spec(), eps)?, &[x, residual, out])
    }

    /// Multiplies every row by `weight`.
    ///
    /// # Errors
    /// As [`AddRmsNormSpec::with_weight`] and [`crate::Call::bind`].
    pub fn weight(self, weight: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_weight(weight.spec())?, &[("weight", weight)])
    }
}

/// `x / √(mean(x²) + eps) · weight`; see [`RmsNormSpec`].
///
/// # Errors
/// As [`RmsNorm::new`] and [`Stream::run`].
pub fn rms_norm(stream: &Stream, x: &Tensor, weight: Option<&Tensor>, eps: f32) -> Result<Tensor> {
    let mut out = stream.empty(&RmsNormSpec::out_spec(x.spec())?)?;
    let op = RmsNorm::new(x, &mut out, eps)?;
    stream.run(match weight {
        Some(weight) => op.weight(weight)?,
        None => op,
    })?;
    Ok(out)
}

/// The norm of each of `groups` equal parts of every row, times a weight as long as the row; see [`RmsNormSpec`].
///
/// # Errors
/// `Shape` when a row is not `groups` equal parts, or the weight not one row; as [`RmsNorm::new`] and [`Stream::run`].
pub fn group_rms_norm(
    stream: &Stream,
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let (n, lead) = match x.dims().split_last() {
        Some((&n, lead)) if groups > 0 && n.is_multiple_of(groups) => (n, lead),
        _ => {
            let what = format!("x is {}, expected rows of {groups} equal groups", x.shape());
            return Err(OpError::shape("group_rms_norm", what));
        }
    };
    let weight = match weight {
        Some(weight) => {
            expect_dims("group_rms_norm", "weight", weight.spec(), &[n])?;
            Some(weight.reshape(&[groups, n / groups])?)
        }
        None => None,
    };
    let grouped = [lead, &[groups, n / groups]].concat();
    rms_norm(stream, &x.reshape(&grouped)?, weight.as_ref(), eps)?.reshape(x.dims())
}

/// `residual += x` in place, then `residual / √(mean(residual²) + eps) · weight`; see [`AddRmsNormSpec`].
///
/// # Errors
/// As [`AddRmsNorm::new`] and [`Stream::run`].
pub fn add_rms_norm(
    stream: &Stream,
    x: &Tensor,
    residual: &mut Tensor,
    weight: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let mut out = stream.empty(&AddRmsNormSpec::out_spec(x.spec())?)?;
    let op = AddRmsNorm::new(x, residual, &mut out, eps)?;
    stream.run(match weight {
        Some(weight) => op.weight(weight)?,
        None => op,
    })?;
    Ok(out)
}
