//! [`Sample`]: the next token of every row of logits.

use super::Sample;
use crate::tensor::Tensor;
use portolan_ops::Result;
use portolan_ops::sample::SampleSpec;

impl Sample {
    /// Draws one token a row by `uniforms [batch]` in [0, 1).
    ///
    /// # Errors
    /// As [`SampleSpec::new`] and [`crate::Call::bind`].
    pub fn new(logits: &Tensor, uniforms: &Tensor, out: &mut Tensor) -> Result<Self> {
        Self::bind(SampleSpec::new(logits.spec(), uniforms.spec(), out.spec())?, &[logits, uniforms, out])
    }

    /// 0 takes the largest logit.
    ///
    /// # Errors
    /// As [`SampleSpec::with_temperature`].
    pub fn temperature(self, temperature: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_temperature(temperature)?, &[])
    }

    /// Keeps the `top_k` likeliest tokens; 0 keeps all.
    ///
    /// # Errors
    /// As [`SampleSpec::with_top_k`].
    pub fn top_k(self, top_k: usize) -> Result<Self> {
        self.rebind(self.spec().clone().with_top_k(top_k)?, &[])
    }

    /// Keeps the fewest likeliest tokens that together have probability `top_p`; 1 keeps all.
    ///
    /// # Errors
    /// As [`SampleSpec::with_top_p`].
    pub fn top_p(self, top_p: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_top_p(top_p)?, &[])
    }

    /// Keeps tokens at least `min_p` times as likely as the likeliest; 0 keeps all.
    ///
    /// # Errors
    /// As [`SampleSpec::with_min_p`].
    pub fn min_p(self, min_p: f32) -> Result<Self> {
        self.rebind(self.spec().clone().with_min_p(min_p)?, &[])
    }

    /// Makes tokens of `history [batch, max]` less likely.
    ///
    /// # Errors
    /// As [`SampleSpec::with_repetition_penalty`] and [`crate::Call::bind`].
    pub fn repetition_penalty(self, penalty: f32, history: &Tensor) -> Result<Self> {
        self.rebind(
            self.spec().clone().with_repetition_penalty(penalty, history.spec())?,
            &[("history", history)],
        )
    }
}
