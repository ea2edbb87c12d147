//! One conversation with a model: its cache, and the captured decode step.
//!
//! A decode step never leaves the device: it samples the next token into the tensor that the next step reads,
//! and advances position, length and random counter there. The host only looks at the token.

use crate::Error;
use crate::generate::{Finish, GenerateOptions, Generated, Timing};
use crate::models::LanguageModel;
use crate::nn::{Batch, Cache};
use portolan_core::{Graph, Lens, Scope, Stream, Tensor, call};
use portolan_ops::kernel::{BinaryKind, RandomKind, ReduceKind, ReduceSpec, ScatterMode};
use portolan_ops::{DType, Shape, TensorSpec};
use std::ops::ControlFlow;
use std::time::Instant;

/// Prompt tokens run at a time: enough rows for the products to be bound by arithmetic.
const PREFILL_CHUNK: usize = 512;

/// A model with the tokens it has seen.
pub struct Session<'m> {
    model: &'m dyn LanguageModel,
    stream: Stream,
    cache: Cache,
    /// Tokens that the cache has seen.
    cached: Vec<u32>,
}

/// What a decode step reads and advances.
struct Step {
    ids: Tensor,
    positions: Tensor,
    q_lens: Lens,
    kv_lens: Lens,
    counter: Tensor,
    uniforms: Tensor,
    history: Option<Tensor>,
}

impl<'m> Session<'m> {
    /// An empty conversation of at most `max_len` tokens (no more than the model was made for).
    ///
    /// # Errors
    /// `OutOfMemory` for the cache.
    pub fn new(model: &'m dyn LanguageModel, stream: &Stream, max_len: usize) -> Result<Self, Error> {
        let max_len = max_len.min(model.info().max_context).max(1);
        Ok(Self {
            model,
            stream: stream.clone(),
            cache: model.cache(stream, 1, max_len)?,
            cached: Vec::new(),
        })
    }

    /// Tokens the conversation can hold.
    pub fn max_len(&self) -> usize {
        self.cache.max_len()
    }

    /// Continues `prompt`, which is the whole conversation so far: what the cache holds of it is not run
    /// again. `on_token` sees every token as it is made and may end generation.
    ///
    /// # Errors
    /// `Prompt` for an empty prompt or one that does not fit, `NotFinite` for weights that compute no numbers, and
    /// whatever the device reports.
    pub fn generate(
        &mut self,
        prompt: &[u32],
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated, Error> {
        let max_len = self.cache.max_len();
        if prompt.is_empty() || prompt.len() > max_len {
            return Err(Error::Prompt { tokens: prompt.len(), max: max_len });
        }
        let started = Instant::now();
        // The last token always runs: its logits are what the first new token is drawn from.
        let shared = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        let shared = self.cache.resumes_at(shared, self.cached.len());
        self.cached.truncate(shared);
        let mut generated =
            Generated { tokens: Vec::new(), finish: Finish::Length, timing: Timing::default() };
        if options.max_tokens == 0 {
            return Ok(generated);
        }
        generated.timing.prompt_tokens = prompt.len() - shared;
        let logits = self.prefill(prompt)?;
        self.expect_finite(&logits)?;
        let mut step = self.first_step(prompt, options)?;
        self.choose(&logits, options, &mut step)?;
        let graph = self.capture(options, &mut step)?;
        let mut decode_started = None;
        loop {
            let pending = self.stream.download::<i32>(&step.ids)?;
            // Look-ahead: the next step is enqueued before this one's token is read, and runs it even if it is the
            // last: the next prompt may well have it too, and where not its entry is dropped.
            let room = self.cached.len() < max_len;
            let more = room && generated.tokens.len() + 1 < options.max_tokens;
            if more {
                graph.replay(&self.stream)?;
            }
            let token = pending.wait()?.first().map_or(0, |&id| id as u32);
            if more {
                self.cached.push(token);
            }
            if decode_started.is_none() {
                generated.timing.prefill = started.elapsed();
                decode_started = Some(Instant::now());
            }
            if options.stop.contains(&token) {
                generated.finish = Finish::Stop;
                break;
            }
            generated.tokens.push(token);
            if on_token(token).is_break() {
                generated.finish = Finish::Cancelled;
                break;
            }
            if !more {
                generated.finish = if generated.tokens.len() == options.max_tokens {
                    Finish::Length
                } else {
                    Finish::Context
                };
                break;
            }
        }
        generated.timing.decode = decode_started.map_or_else(Default::default, |at| at.elapsed());
        generated.timing.decoded_tokens = generated.tokens.len().saturating_sub(1);
        // Work enqueued ahead must not outlive what it writes to, nor hide its error.
        self.stream.synchronize()?;
        Ok(generated)
    }

    /// Runs what the cache lacks of the prompt; logits of its last token.
    fn prefill(&mut self, prompt: &[u32]) -> Result<Tensor, Error> {
        let mut logits = None;
        while self.cached.len() < prompt.len() {
            let start = self.cached.len();
            let chunk = &prompt[start..prompt.len().min(start + PREFILL_CHUNK)];
            let mut batch = Batch::new(&self.stream, &[chunk], &[start], self.cache.max_len())?;
            batch = if start + chunk.len() == prompt.len() {
                batch.last_rows_only(&self.stream, &[chunk])?
            } else {
                batch.without_logits(&self.stream)?
            };
            logits = Some(self.model.forward(&self.stream, &batch, &mut self.cache)?);
            self.cached.extend_from_slice(chunk);
        }
        logits.ok_or(Error::Prompt { tokens: 0, max: self.cache.max_len() })
    }

    /// Fails where the model no longer computes: what is drawn from NaN would look like an answer.
    fn expect_finite(&self, logits: &Tensor) -> Result<(), Error> {
        let spec = ReduceSpec::out_spec(ReduceKind::Sum, logits.spec(), &[0, 1], false)?;
        let mut sum = self.stream.empty(&spec)?;
        self.stream.run(call::Reduce::new(ReduceKind::Sum, logits, &[0, 1], false, &mut sum)?)?;
        let sums = self.stream.download::<f32>(&sum)?.wait()?;
        if sums.iter().all(|sum| sum.is_finite()) { Ok(()) } else { Err(Error::NotFinite) }
    }

    /// The device's side of decoding, for the token behind the prompt.
    fn first_step(&self, prompt: &[u32], options: &GenerateOptions) -> Result<Step, Error> {
        let stream = &self.stream;
        let max_len = self.cache.max_len();
        let one = Shape::new(&[1])?;
        let len = prompt.len() as i32;
        let history = if options.repetition_penalty == 1.0 {
            None
        } else {
            let mut row: Vec<i32> = prompt.iter().map(|&t| t as i32).collect();
            row.resize(max_len + 1, -1);
            Some(stream.upload(&row, &Shape::new(&[1, max_len + 1])?)?)
        };
        Ok(Step {
            ids: stream.empty(&TensorSpec::new(DType::I32, one))?,
            positions: stream.upload(&[len], &one)?,
            q_lens: Lens::upload(stream, &[1], 1)?,
            kv_lens: Lens::new(stream.upload(&[len + 1], &one)?, max_len as u32, None)?,
            counter: stream.upload(&[0i64], &one)?,
            uniforms: stream.upload(&[0f32], &one)?,
            history,
        })
    }

    /// Draws the next token from logits `[1, vocab]` into `step.ids`.
    fn choose(&self, logits: &Tensor, options: &GenerateOptions, step: &mut Step) -> Result<(), Error> {
        let _scope = Scope::named("choose");
        let stream = &self.stream;
        if options.temperature > 0.0 {
            let random = call::Random::new(RandomKind::Uniform, options.seed, &mut step.uniforms)?;
            stream.run(random.counter(&step.counter)?)?;
            stream.run(call::Binary::scalar(
                BinaryKind::Add,
                &step.counter,
                1.0,
                &mut step.counter.clone(),
            )?)?;
        }
        let mut sample = call::Sample::new(logits, &step.uniforms, &mut step.ids)?
            .temperature(options.temperature)?
            .top_k(options.top_k)?
            .top_p(options.top_p)?
            .min_p(options.min_p)?;
        if let Some(history) = &step.history {
            sample = sample.repetition_penalty(options.repetition_penalty, history)?;
        }
        stream.run(sample)?;
        if let Some(history) = &step.history {
            let token = step.ids.reshape(&[1, 1])?;
            let write = call::Scatter::new(
                ScatterMode::Set,
                history,
                1,
                &step.positions,
                &token,
                &mut history.clone(),
            )?;
            stream.run(write)?;
        }
        Ok(())
    }

    /// One decode step as a graph: runs `step.ids`, draws the next token, advances.
    fn capture(&mut self, options: &GenerateOptions, step: &mut Step) -> Result<Graph, Error> {
        let stream = self.stream.clone();
        let mut failure = None;
        let graph = stream.capture(|s| {
            let recorded = self.record_step(s, options, step);
            recorded.map_err(|error| match error {
                Error::Op(op) => op,
                other => {
                    failure = Some(other);
                    portolan_ops::OpError::Capture { what: "the decode step could not be recorded".into() }
                }
            })
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(graph?),
        }
    }

    fn record_step(
        &mut self,
        stream: &Stream,
        options: &GenerateOptions,
        step: &mut Step,
    ) -> Result<(), Error> {
        let batch = Batch {
            ids: step.ids.clone(),
            positions: step.positions.clone(),
            q_lens: step.q_lens.clone(),
            kv_lens: step.kv_lens.clone(),
            logit_rows: None,
        };
        let logits = self.model.forward(stream, &batch, &mut self.cache)?;
        for counter in [&step.positions, step.kv_lens.tensor()] {
            stream.run(call::Binary::scalar(BinaryKind::Add, counter, 1.0, &mut counter.clone())?)?;
        }
        self.choose(&logits, options, step)
    }
}
