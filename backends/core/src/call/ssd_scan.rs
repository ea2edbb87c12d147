//! [`SsdScan`].

use super::SsdScan;
use crate::stream::Stream;
use crate::tensor::Tensor;
use crate::weight::Lens;
use portolan_ops::Result;
use portolan_ops::ssm::SsdScanSpec;

impl SsdScan {
    /// The recurrence alone, from a state of 0.
    ///
    /// # Errors
    /// As [`SsdScanSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        x: &Tensor,
        delta: &Tensor,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        out: &mut Tensor,
    ) -> Result<Self> {
        let spec = SsdScanSpec::new(x.spec(), delta.spec(), a.spec(), b.spec(), c.spec(), out.spec())?;
        Self::bind(spec, &[x, delta, a, b, c, out])
    }

    /// Adds `d · x` to the result.
    ///
    /// # Errors
    /// As [`SsdScanSpec::with_d`] and [`crate::Call::bind`].
    pub fn d(self, d: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_d(d.spec())?, &[("d", d)])
    }

    /// Adds `delta_bias` to every step size.
    ///
    /// # Errors
    /// As [`SsdScanSpec::with_delta_bias`] and [`crate::Call::bind`].
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

    /// Works on so many tokens at a time.
    ///
    /// # Errors
    /// As [`SsdScanSpec::with_chunk`].
    pub fn chunk(self, chunk: usize) -> Result<Self> {
        self.rebind(self.spec().clone().with_chunk(chunk)?, &[])
    }

    /// Says that the tokens of several sequences lie one behind the other in the one row of them; states have an entry for
    /// each sequence, and are set after this.
    ///
    /// # Errors
    /// As [`SsdScanSpec::with_lens`] and [`crate::Call::bind`].
    pub fn lens(self, lens: &Lens) -> Result<Self> {
        let spec = self.spec().clone().with_lens(&lens.spec("ssd_scan", "lens")?)?;
        self.rebind(spec, &[("lens", lens.tensor())])
    }

    /// Begins with the state `initial`.
    ///
    /// # Errors
    /// As [`SsdScanSpec::with_initial`] and [`crate::Call::bind`].
    pub fn initial(self, initial: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_initial(initial.spec())?, &[("initial", initial)])
    }

    /// Also writes the state behind the last token; `last` may be the initial state itself.
    ///
    /// # Errors
    /// As [`SsdScanSpec::with_last`] and [`crate::Call::bind`].
    pub fn last(self, last: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_last(last.spec())?, &[("last", last)])
    }
}

/// The recurrence alone, from a state of 0, and the state behind it; see [`SsdScanSpec`].
///
/// # Errors
/// As [`SsdScan::new`] and [`Stream::run`].
pub fn ssd_scan(
    stream: &Stream,
    x: &Tensor,
    delta: &Tensor,
    a: &Tensor,
    b: &Tensor,
    c: &Tensor,
) -> Result<(Tensor, Tensor)> {
    let mut out = stream.empty(&SsdScanSpec::out_spec(x.spec())?)?;
    let mut last = stream.empty(&SsdScanSpec::state_spec(x.spec(), b.spec())?)?;
    stream.run(SsdScan::new(x, delta, a, b, c, &mut out)?.last(&mut last)?)?;
    Ok((out, last))
}
