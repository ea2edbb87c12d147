//! Perplexity: how surprised a model is by a text, the figure that shows what rounding costs.
//!
//! Beside `session.rs`, which writes text; this only reads it.

use crate::Error;
use crate::models::{LanguageModel, ModelInfo};
use crate::nn::Batch;
use portolan_core::Stream;

/// Tokens run at a time: their logits are all on the host at once.
const CHUNK: usize = 64;

/// `exp` of the mean of `−ln p(token | tokens before it)`, over every token but the first.
///
/// # Errors
/// `Prompt` for fewer than two tokens or more than the model was made for, and whatever the device reports.
pub fn perplexity(model: &dyn LanguageModel, stream: &Stream, tokens: &[u32]) -> Result<f64, Error> {
    let ModelInfo { vocab, max_context: max, .. } = model.info();
    if tokens.len() < 2 || tokens.len() > max {
        return Err(Error::Prompt { tokens: tokens.len(), max });
    }
    let mut cache = model.cache(stream, 1, tokens.len())?;
    let mut sum = 0.0;
    for (at, chunk) in tokens.chunks(CHUNK).enumerate() {
        let start = at * CHUNK;
        let batch = Batch::new(stream, &[chunk], &[start], tokens.len())?;
        let logits = model.forward(stream, &batch, &mut cache)?;
        let logits = stream.download::<f32>(&logits)?.wait()?;
        // The last row of all predicts a token that is not there.
        let next = tokens.iter().skip(start + 1);
        sum += logits.chunks(vocab).zip(next).map(|(row, &next)| surprise(row, next)).sum::<f64>();
    }
    Ok((sum / (tokens.len() - 1) as f64).exp())
}

/// `ln Σ exp(logit) − logit[token]`, in f64 about the largest logit.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - largest).exp()).sum();
    sum.ln() + f64::from(largest) - logits.get(token as usize).map_or(f64::NEG_INFINITY, |&l| f64::from(l))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_surprise_by_the_logarithm_of_their_number() {
        assert!((surprise(&[3.0; 8], 5) - 8f64.ln()).abs() < 1e-12);
        assert!(surprise(&[0.0, 50.0], 1) < 1e-12);
        assert!((surprise(&[0.0, 1000.0], 0) - 1000.0).abs() < 1e-9);
    }
}
