//! [`Hadamard`]: the transform of blocks of every row.

use super::Hadamard;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::quant::HadamardSpec;

impl Hadamard {
    /// The normalised transform of every block of `x`; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`HadamardSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, out: &mut Tensor, block: usize) -> Result<Self> {
        Self::bind(HadamardSpec::new(x.spec(), out.spec(), block)?, &[x, out])
    }
}

/// The normalised transform of every block of `x`; see [`HadamardSpec`].
///
/// # Errors
/// As [`Hadamard::new`] and [`Stream::run`].
pub fn hadamard(stream: &Stream, x: &Tensor, block: usize) -> Result<Tensor> {
    let mut out = stream.empty(&x.spec().to_contiguous())?;
    stream.run(Hadamard::new(x, &mut out, block)?)?;
    Ok(out)
}
