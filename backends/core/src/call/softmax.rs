//! [`Softmax`]: along the last dimension.

use super::Softmax;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::norm::SoftmaxSpec;

impl Softmax {
    /// `out = e^x / Σ e^x` of every row; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`SoftmaxSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(SoftmaxSpec::new(x.spec(), out.spec())?, &[x, out])
    }

    /// Multiplies `x` first.
    ///
    /// # Errors
    /// As [`SoftmaxSpec::with_scale`].
    pub fn scale(self, scale: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_scale(scale)?, &[])
    }
}

/// Softmax of every row; see [`SoftmaxSpec`].
///
/// # Errors
/// As [`Softmax::new`] and [`Stream::run`].
pub fn softmax(stream: &Stream, x: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&SoftmaxSpec::out_spec(x.spec())?)?;
    stream.run(Softmax::new(x, &mut out)?)?;
    Ok(out)
}
