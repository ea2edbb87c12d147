//! [`CausalConv1d`].

use super::CausalConv1d;
use crate::stream::Stream;
use crate::tensor::Tensor;
use crate::weight::Lens;
use portolan_ops::Result;
use portolan_ops::ssm::CausalConv1dSpec;

impl CausalConv1d {
    /// Convolves every channel of `x` with its filter, from rows of 0.
    ///
    /// # Errors
    /// As [`CausalConv1dSpec::new`] and [`crate::Call::bind`].
    pub fn new(x: &Tensor, weight: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(CausalConv1dSpec::new(x.spec(), weight.spec(), out.spec())?, &[x, weight, out])
    }

    /// Adds `bias` to every row.
    ///
    /// # Errors
    /// As [`CausalConv1dSpec::with_bias`] and [`crate::Call::bind`].
    pub fn bias(self, bias: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_bias(bias.spec())?, &[("bias", bias)])
    }

    /// Applies SiLU last.
    ///
    /// # Errors
    /// As [`crate::Call::bind`].
    pub fn silu(self) -> Result<Self> {
        self.rebind(self.spec().clone().with_silu(), &[])
    }

    /// Says that the tokens of several sequences lie one behind the other in the one row of them; states have an entry for
    /// each sequence, and are set after this.
    ///
    /// # Errors
    /// As [`CausalConv1dSpec::with_lens`] and [`crate::Call::bind`].
    pub fn lens(self, lens: &Lens) -> Result<Self> {
        let spec = self.spec().clone().with_lens(&lens.spec("causal_conv1d", "lens")?)?;
        self.rebind(spec, &[("lens", lens.tensor())])
    }

    /// Continues behind the rows of `initial`.
    ///
    /// # Errors
    /// As [`CausalConv1dSpec::with_initial`] and [`crate::Call::bind`].
    pub fn initial(self, initial: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_initial(initial.spec())?, &[("initial", initial)])
    }

    /// Also writes the rows that a later call continues behind; `last` may be the initial rows themselves.
    ///
    /// # Errors
    /// As [`CausalConv1dSpec::with_last`] and [`crate::Call::bind`].
    pub fn last(self, last: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_last(last.spec())?, &[("last", last)])
    }
}

/// Every channel of `x` convolved with its filter, from rows of 0; see [`CausalConv1dSpec`].
///
/// # Errors
/// As [`CausalConv1d::new`] and [`Stream::run`].
pub fn causal_conv1d(
    stream: &Stream,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    silu: bool,
) -> Result<Tensor> {
    let mut out = stream.empty(&CausalConv1dSpec::out_spec(x.spec())?)?;
    let mut op = CausalConv1d::new(x, weight, &mut out)?;
    if let Some(bias) = bias {
        op = op.bias(bias)?;
    }
    if silu {
        op = op.silu()?;
    }
    stream.run(op)?;
    Ok(out)
}
