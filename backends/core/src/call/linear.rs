//! [`Linear`]: a layer's product over any form of weight.

use super::Linear;
use crate::stream::Stream;
use crate::tensor::Tensor;
use crate::weight::Weight;
use portolan_ops::Result;
use portolan_ops::kernel::Activation;
use portolan_ops::quant::{ActQuant, LinearSpec};
use smallvec::SmallVec;

impl Linear {
    /// `out[.., n] = Σ_k x[.., k] · weight[n, k]`.
    ///
    /// # Errors
    /// As [`LinearSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, weight: &Weight, out: &mut Tensor) -> Result<Self> {
        let spec = LinearSpec::new(x.spec(), &weight.spec()?, out.spec())?;
        let operands: SmallVec<[&Tensor; 7]> =
            [x].into_iter().chain(weight.tensors()).chain([&*out]).collect();
        Self::bind(spec, &operands)
    }

    /// Adds `bias[n]` to every row.
    ///
    /// # Errors
    /// As [`LinearSpec::with_bias`] and [`crate::Call::bind`].
    pub fn bias(self, bias: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_bias(bias.spec())?, &[("bias", bias)])
    }

    /// Applies a function last.
    ///
    /// # Errors
    /// As [`crate::Call::bind`].
    pub fn activation(self, activation: Activation) -> Result<Self> {
        self.rebind(self.spec().clone().with_activation(activation), &[])
    }

    /// Rounds activations before the product.
    ///
    /// # Errors
    /// As [`LinearSpec::with_act_quant`].
    pub fn act_quant(self, act_quant: ActQuant) -> Result<Self> {
        self.rebind(self.spec().clone().with_act_quant(act_quant)?, &[])
    }
}

/// `Σ_k x[.., k] · weight[n, k]`; see [`LinearSpec`].
///
/// # Errors
/// As [`Linear::new`] and [`Stream::run`].
pub fn linear(stream: &Stream, x: &Tensor, weight: &Weight) -> Result<Tensor> {
    let mut out = stream.empty(&LinearSpec::out_spec(x.spec(), &weight.spec()?)?)?;
    stream.run(Linear::new(x, weight, &mut out)?)?;
    Ok(out)
}
