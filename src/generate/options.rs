//! How tokens are chosen, when to stop, and what came of it.

use std::time::Duration;

/// How a continuation is made.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Tokens to make at most.
    pub max_tokens: usize,
    /// 0 takes the likeliest token; higher is more varied.
    pub temperature: f32,
    /// Keeps the likeliest so many tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest likeliest tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as likely as the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Makes tokens that occurred less likely; 1 leaves them.
    pub repetition_penalty: f32,
    /// Chooses the random numbers.
    pub seed: u64,
    /// Tokens that end the text; they are not part of it.
    pub stop: Vec<u32>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
        }
    }
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token.
    Stop,
    /// As many tokens as were asked for.
    Length,
    /// The cache is full.
    Context,
    /// The caller's callback said so.
    Cancelled,
}

/// How long it took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// Prompt tokens that were run (those in the cache already are not).
    pub prompt_tokens: usize,
    /// Time from the call to the first token.
    pub prefill: Duration,
    /// Tokens made after the first.
    pub decoded_tokens: usize,
    /// Time for those.
    pub decode: Duration,
}

impl Timing {
    /// Prompt tokens per second.
    pub fn prefill_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill.as_secs_f64().max(1e-9)
    }

    /// Tokens made per second, the first one left out.
    pub fn decode_rate(&self) -> f64 {
        self.decoded_tokens as f64 / self.decode.as_secs_f64().max(1e-9)
    }
}

/// A continuation.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The tokens made, without the stop token.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// How long it took.
    pub timing: Timing,
}
