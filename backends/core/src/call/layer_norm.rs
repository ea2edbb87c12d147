//! [`LayerNorm`]: along the last dimension.

use super::LayerNorm;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::norm::LayerNormSpec;

impl LayerNorm {
    /// `out = (x − mean(x)) / √(variance(x) + eps)`; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`LayerNormSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, out: &mut Tensor, eps: f32) -> Result<Self> {
        Self::bind(LayerNormSpec::new(x.spec(), out.spec(), eps)?, &[x, out])
    }

    /// Multiplies every row by `weight`.
    ///
    /// # Errors
    /// As [`LayerNormSpec::with_weight`] and [`crate::Call::bind`].
    pub fn weight(self, weight: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_weight(weight.spec())?, &[("weight", weight)])
    }

    /// Adds `bias` to every row, after the weight.
    ///
    /// # Errors
    /// As [`LayerNormSpec::with_bias`] and [`crate::Call::bind`].
    pub fn bias(self, bias: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_bias(bias.spec())?, &[("bias", bias)])
    }
}

/// `(x − mean) / √(variance + eps) · weight + bias` of every row; see [`LayerNormSpec`].
///
/// # Errors
/// As [`LayerNorm::new`] and [`Stream::run`].
pub fn layer_norm(
    stream: &Stream,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f32,
) -> Result<Tensor> {
    let mut out = stream.empty(&LayerNormSpec::out_spec(x.spec())?)?;
    let mut op = LayerNorm::new(x, &mut out, eps)?;
    if let Some(weight) = weight {
        op = op.weight(weight)?;
    }
    if let Some(bias) = bias {
        op = op.bias(bias)?;
    }
    stream.run(op)?;
    Ok(out)
}
