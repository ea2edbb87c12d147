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

    /// The same over one tensor `[.., 2n]`: gate at even places, up at odd ones.
    ///
    /// # Errors
    /// As [`SwigluSpec::interleaved`] and [`crate::Call::bind`].
    pub fn interleaved(gate_up: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(SwigluSpec::interleaved(gate_up.spec(), out.spec())?, &[gate_up, out])
    }

    /// Bounds the gate from above by `limit`, and up to `[−limit, limit]`.
    ///
    /// # Errors
    /// As [`SwigluSpec::with_limit`].
    pub fn limit(self, limit: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_limit(limit)?, &[])
    }

    /// Multiplies the gate by `alpha` inside the sigmoid.
    ///
    /// # Errors
    /// As [`SwigluSpec::with_alpha`].
    pub fn alpha(self, alpha: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_alpha(alpha)?, &[])
    }

    /// Adds `up_offset` to up, after the limit.
    ///
    /// # Errors
    /// As [`SwigluSpec::with_up_offset`].
    pub fn up_offset(self, up_offset: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_up_offset(up_offset)?, &[])
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
