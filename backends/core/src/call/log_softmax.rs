//! [`LogSoftmax`]: along the last dimension.

use super::LogSoftmax;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::norm::LogSoftmaxSpec;

impl LogSoftmax {
    /// `out = x − ln Σ e^x` of every row; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`LogSoftmaxSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(LogSoftmaxSpec::new(x.spec(), out.spec())?, &[x, out])
    }

    /// Multiplies `x` first.
    ///
    /// # Errors
    /// As [`LogSoftmaxSpec::with_scale`].
    pub fn scale(self, scale: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_scale(scale)?, &[])
    }
}

/// The logarithm of softmax of every row; see [`LogSoftmaxSpec`].
///
/// # Errors
/// As [`LogSoftmax::new`] and [`Stream::run`].
pub fn log_softmax(stream: &Stream, x: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&LogSoftmaxSpec::out_spec(x.spec())?)?;
    stream.run(LogSoftmax::new(x, &mut out)?)?;
    Ok(out)
}
