//! [`RmsNorm`] and [`AddRmsNorm`].

use super::{AddRmsNorm, RmsNorm};
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::norm::{AddRmsNormSpec, RmsNormSpec};

impl RmsNorm {
    /// `out = x / √(mean(x²) + eps)`; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`RmsNormSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, out: &mut Tensor, eps: f32) -> Result<Self> {
        Self::bind(RmsNormSpec::new(x.spec(), out.spec(), eps)?, &[x, out])
    }

    /// Multiplies every row by `weight`.
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
