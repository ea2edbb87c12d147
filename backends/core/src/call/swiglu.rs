//! [`Swiglu`]: the gated unit of Llama's feed-forward network.

use super::Swiglu;
use crate::stream::Stream;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::activation::SwigluSpec;

impl Swiglu {
    /// `out = silu(gate) · up`.
    ///
    /// # Errors
    /// As [`SwigluSpec::new`] and [`crate::Call::bind`].
    pub fn new(gate: &Tensor, up: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(SwigluSpec::new(gate.spec(), up.spec(), out.spec())?, &[gate, up, out])
    }

    /// The same over one tensor `[.., 2n]`: gate first, up second.
    ///
    /// # Errors
    /// As [`SwigluSpec::fused`] and [`crate::Call::bind`].
    pub fn fused(gate_up: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(SwigluSpec::fused(gate_up.spec(), out.spec())?, &[gate_up, out])
    }
}

/// `silu(gate) · up` of one tensor `[.., 2n]`; see [`SwigluSpec`].
///
/// # Errors
/// As [`Swiglu::fused`] and [`Stream::run`].
pub fn swiglu(stream: &Stream, gate_up: &Tensor) -> Result<Tensor> {
    let mut out = stream.empty(&SwigluSpec::out_spec(gate_up.spec())?)?;
    stream.run(Swiglu::fused(gate_up, &mut out)?)?;
    Ok(out)
}
