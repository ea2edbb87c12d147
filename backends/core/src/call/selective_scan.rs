//! [`SelectiveScan`].

use super::SelectiveScan;
use crate::stream::Stream;
use crate::tensor::Tensor;
use crate::weight::Lens;
use portolan_ops::Result;
use portolan_ops::ssm::SelectiveScanSpec;

impl SelectiveScan {
    /// The recurrence alone, from a state of 0; `out` may be `x` itself.
    ///
    /// # Errors
    /// As [`SelectiveScanSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        x: &Tensor,
        delta: &Tensor,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        out: &mut Tensor,
    ) -> Result<Self> {
        let spec = SelectiveScanSpec::new(x.spec(), delta.spec(), a.spec(), b.spec(), c.spec(), out.spec())?;
        Self::bind(spec, &[x, delta, a, b, c, out])
    }

    /// Adds `d · x` to the result.
    ///
    /// # Errors
    /// As [`SelectiveScanSpec::with_d`] and [`crate::Call::bind`].
    pub fn d(self, d: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_d(d.spec())?, &[("d", d)])
    }

    /// Multiplies the result by `silu(z)`.
    ///
    /// # Errors
    /// As [`SelectiveScanSpec::with_z`] and [`crate::Call::bind`].
    pub fn z(self, z: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_z(z.spec())?, &[("z", z)])
    }

    /// Adds `delta_bias` to every step size.
    ///
    /// # Errors
    /// As [`SelectiveScanSpec::with_delta_bias`] and [`crate::Call::bind`].
    pub fn delta_bias(self, delta_bias: &Tensor) -> Result<Self> {
        let spec = self.spec().clone().with_delta_bias(delta_bias.spec())?;
        self.rebind(spec, &[("delta_bias", delta_bias)])
    }

    /// Takes softplus of every step size, behind its bias.
    ///
    /// # Errors
    /// As [`crate::Call::bind`].
    pub fn softplus(self) -> Result<Self> {
        self.rebind(self.spec().clone().with_softplus(), &[])
    }

    /// Says that the tokens of several sequences lie one behind the other in the one row of them; states have an entry for
    /// each sequence, and are set after this.
    ///
    /// # Errors
    /// As [`SelectiveScanSpec::with_lens`] and [`crate::Call::bind`].
    pub fn lens(self, lens: &Lens) -> Result<Self> {
        let spec = self.spec().clone().with_lens(&lens.spec("selective_scan", "lens")?)?;
        self.rebind(spec, &[("lens", lens.tensor())])
    }

    /// Begins with the state `initial`.
    ///
    /// # Errors
    /// As [`SelectiveScanSpec::with_initial`] and [`crate::Call::bind`].
    pub fn initial(self, initial: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_initial(initial.spec())?, &[("initial", initial)])
    }

    /// Also writes the state behind the last token; `last` may be the initial state itself.
    ///
    /// # Errors
    /// As [`SelectiveScanSpec::with_last`] and [`crate::Call::bind`].
    pub fn last(self, last: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_last(last.spec())?, &[("last", last)])
    }
}

/// The recurrence alone, from a state of 0, and the state behind it; see [`SelectiveScanSpec`].
///
/// # Errors
/// As [`SelectiveScan::new`] and [`Stream::run`].
pub fn selective_scan(
    stream: &Stream,
    x: &Tensor,
    delta: &Tensor,
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let mut out = stream.empty(&SelectiveScanSpec::out_spec(x.spec())?)?;
    let mut last = stream.empty(&SelectiveScanSpec::state_spec(x.spec(), a.spec())?)?;
    stream.run(SelectiveScan::new(x, delta, a, b, c, &mut out)?.last(&mut last)?)?;
    Ok((out, last))
}
