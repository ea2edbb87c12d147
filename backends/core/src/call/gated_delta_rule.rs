//! [`GatedDeltaRule`].

use super::GatedDeltaRule;
use crate::stream::Stream;
use crate::tensor::Tensor;
use crate::weight::Lens;
use portolan_ops::Result;
use portolan_ops::ssm::GatedDeltaRuleSpec;

impl GatedDeltaRule {
    /// The rule from a state of 0, with a scale of `1/√key_dim`.
    ///
    /// # Errors
    /// As [`GatedDeltaRuleSpec::new`] and [`crate::Call::bind`].
    pub fn new(
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        g: &Tensor,
        beta: &Tensor,
        out: &mut Tensor,
    ) -> Result<Self> {
        let spec = GatedDeltaRuleSpec::new(q.spec(), k.spec(), v.spec(), g.spec(), beta.spec(), out.spec())?;
        Self::bind(spec, &[q, k, v, g, beta, out])
    }

    /// Factor of the result.
    ///
    /// # Errors
    /// As [`GatedDeltaRuleSpec::with_scale`].
    pub fn scale(self, scale: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_scale(scale)?, &[])
    }

    /// Divides every query and key by the root of the sum of its squares and `eps`.
    ///
    /// # Errors
    /// As [`GatedDeltaRuleSpec::with_key_norm`].
    pub fn key_norm(self, eps: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_key_norm(eps)?, &[])
    }

    /// Says that the tokens of several sequences lie one behind the other in the one row of them; states have an entry for
    /// each sequence, and are set after this.
    ///
    /// # Errors
    /// As [`GatedDeltaRuleSpec::with_lens`] and [`crate::Call::bind`].
    pub fn lens(self, lens: &Lens) -> Result<Self> {
        let spec = self.spec().clone().with_lens(&lens.spec("gated_delta_rule", "lens")?)?;
        self.rebind(spec, &[("lens", lens.tensor())])
    }

    /// Begins with the state `initial`.
    ///
    /// # Errors
    /// As [`GatedDeltaRuleSpec::with_initial`] and [`crate::Call::bind`].
    pub fn initial(self, initial: &Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_initial(initial.spec())?, &[("initial", initial)])
    }

    /// Also writes the state behind the last token; `last` may be the initial state itself.
    ///
    /// # Errors
    /// As [`GatedDeltaRuleSpec::with_last`] and [`crate::Call::bind`].
    pub fn last(self, last: &mut Tensor) -> Result<Self> {
        self.rebind(self.spec().clone().with_last(last.spec())?, &[("last", last)])
    }
}

/// The rule from a state of 0, with normalised keys if `key_norm` is given, and the state behind it; see
/// [`GatedDeltaRuleSpec`].
///
/// # Errors
/// As [`GatedDeltaRule::new`] and [`Stream::run`].
pub fn gated_delta_rule(
    stream: &Stream,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    g: &Tensor,
    beta: &Tensor,
    key_norm: Option<f32>,
) -> Result<(Tensor, Tensor)> {
    let mut out = stream.empty(&GatedDeltaRuleSpec::out_spec(v.spec())?)?;
    let mut last = stream.empty(&GatedDeltaRuleSpec::state_spec(k.spec(), v.spec())?)?;
    let mut op = GatedDeltaRule::new(q, k, v, g, beta, &mut out)?.last(&mut last)?;
    if let Some(eps) = key_norm {
        op = op.key_norm(eps)?;
    }
    stream.run(op)?;
    Ok((out, last))
}
