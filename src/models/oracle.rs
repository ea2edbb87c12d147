//! The Llama family in plain f64 loops: what a correct model answers, written to be read.
//!
//! Independent of `llama.rs`, of every operator and of every kernel; shares only the file reader with them.

use crate::Error;
use crate::load::config::LlamaConfig;
use crate::load::names::LLAMA;
use crate::load::{HostWeight, LoadError, WeightSource};
use portolan_ops::rope::{RopeScaling, RopeStyle};
use std::borrow::Cow;

/// Columns of activations that share a scale under int8.
const GROUP: usize = 32;

/// A matrix `[n, k]` of rows.
struct Matrix {
    k: usize,
    values: Vec<f64>,
    /// Whether the file holds codes: int8 activations are for these only.
    quantized: bool,
}

impl Matrix {
    fn row(&self, n: usize) -> &[f64] {
        &self.values[n * self.k..(n + 1) * self.k]
    }

    /// `x · rowsᵀ`.
    fn times(&self, x: &[f64]) -> Vec<f64> {
        self.values.chunks(self.k).map(|row| dot(row, x)).collect()
    }
}

struct Layer {
    attn_norm: Vec<f64>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    ffn_norm: Vec<f64>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// A model in f64: no cache, no batches, every position computed from all before it.
pub struct OracleLlama {
    config: LlamaConfig,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f64>,
    output: Option<Matrix>,
}

impl OracleLlama {
    /// Reads the weights of an open model, dequantized.
    ///
    /// # Errors
    /// Those of the file; `Key` for a model with biases, a sliding window or scaled rotation, which are checked against
    /// the transformers library's answers instead.
    pub fn load(source: &dyn WeightSource) -> Result<Self, Error> {
        let config = LlamaConfig::from_source(source)?;
        let plain = !(config.qkv_bias || config.o_bias || config.mlp_bias)
            && config.sliding_window.is_none()
            && config.rope_scaling == RopeScaling::None;
        if !plain {
            let seen = "biases, a sliding window or scaled rotation";
            return Err(LoadError::key(
                source.path(),
                "the configuration",
                seen,
                "a plain llama for the oracle",
            )
            .into());
        }
        let vector = |canonical: &str, layer: usize| -> Result<Vec<f64>, Error> {
            let name = LLAMA.name(source.naming(), canonical, layer).unwrap_or_default();
            Ok(widened(&source.load(&name)?))
        };
        let matrix = |canonical: &str, layer: usize, n: usize, k: usize| -> Result<Matrix, Error> {
            let name = LLAMA.name(source.naming(), canonical, layer).unwrap_or_default();
            let weight = source.load(&name)?;
            let (values, quantized) = (widened(&weight), matches!(weight, HostWeight::Quant(_)));
            if values.len() != n.saturating_mul(k) || k == 0 {
                let what = format!("has {} elements, wanted {n} rows of {k}", values.len());
                return Err(LoadError::tensor(source.path(), canonical, what).into());
            }
            Ok(Matrix { k, values, quantized })
        };
        let (hidden, ffn, q, kv) = (config.hidden, config.ffn, config.q_width(), config.kv_width());
        let layer = |i: usize| -> Result<Layer, Error> {
            Ok(Layer {
                attn_norm: vector("layers.{i}.attn_norm.weight", i)?,
                q: matrix("layers.{i}.q.weight", i, q, hidden)?,
                k: matrix("layers.{i}.k.weight", i, kv, hidden)?,
                v: matrix("layers.{i}.v.weight", i, kv, hidden)?,
                o: matrix("layers.{i}.o.weight", i, hidden, q)?,
                ffn_norm: vector("layers.{i}.ffn_norm.weight", i)?,
                gate: matrix("layers.{i}.gate.weight", i, ffn, hidden)?,
                up: matrix("layers.{i}.up.weight", i, ffn, hidden)?,
                down: matrix("layers.{i}.down.weight", i, hidden, ffn)?,
            })
        };
        let output = if config.tied { None } else { Some(matrix("output.weight", 0, config.vocab, hidden)?) };
        Ok(Self {
            embedding: matrix("embedding.weight", 0, config.vocab, hidden)?,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            norm: vector("norm.weight", 0)?,
            output,
            config,
        })
    }

    /// Logits `[tokens, vocab]` of one sequence from its start.
    ///
    /// # Errors
    /// `Prompt` when a token is none of the vocabulary's.
    pub fn logits(&self, tokens: &[u32]) -> Result<Vec<f64>, Error> {
        self.run(tokens, &mut Seen::AsTheyAre)
    }

    /// The same with activations rounded to int8 before every product with a quantized weight.
    ///
    /// # Errors
    /// `Prompt` when a token is none of the vocabulary's.
    pub fn int8_logits(&self, tokens: &[u32]) -> Result<Int8Logits, Error> {
        let mut margins = vec![f64::INFINITY; tokens.len()];
        let logits = self.run(tokens, &mut Seen::Int8 { margins: &mut margins })?;
        let mut smallest = f64::INFINITY;
        for margin in &mut margins {
            smallest = smallest.min(*margin);
            *margin = smallest;
        }
        Ok(Int8Logits { logits, margins })
    }

    fn run(&self, tokens: &[u32], seen: &mut Seen<'_>) -> Result<Vec<f64>, Error> {
        let vocab = self.config.vocab;
        if tokens.iter().any(|&t| t as usize >= vocab) {
            return Err(Error::Prompt { tokens: tokens.len(), max: vocab });
        }
        let mut states: Vec<Vec<f64>> =
            tokens.iter().map(|&t| self.embedding.row(t as usize).to_vec()).collect();
        for layer in &self.layers {
            self.attend(layer, &mut states, seen);
            for (position, state) in states.iter_mut().enumerate() {
                let x = self.normalized(state, &layer.ffn_norm);
                let gate = seen.product(&layer.gate, position, &x);
                let up = seen.product(&layer.up, position, &x);
                let gated: Vec<f64> = gate.iter().zip(up).map(|(&g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(state, &seen.product(&layer.down, position, &gated));
            }
        }
        let output = self.output.as_ref().unwrap_or(&self.embedding);
        let last = |(position, state): (usize, &Vec<f64>)| {
            seen.product(output, position, &self.normalized(state, &self.norm))
        };
        Ok(states.iter().enumerate().flat_map(last).collect())
    }

    /// Adds causal attention over all states to each of them.
    fn attend(&self, layer: &Layer, states: &mut [Vec<f64>], seen: &mut Seen<'_>) {
        let (heads, head_dim) = (self.config.num_heads, self.config.head_dim);
        let shared = heads / self.config.num_kv_heads;
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, state) in states.iter().enumerate() {
            let x = self.normalized(state, &layer.attn_norm);
            queries.push(self.rotated(seen.product(&layer.q, position, &x), position));
            keys.push(self.rotated(seen.product(&layer.k, position, &x), position));
            values.push(seen.product(&layer.v, position, &x));
        }
        for (position, state) in states.iter_mut().enumerate() {
            let mut attended = vec![0.0; heads * head_dim];
            for (head, out) in attended.chunks_mut(head_dim).enumerate() {
                let query = &queries[position][head * head_dim..(head + 1) * head_dim];
                let kv = head / shared * head_dim..(head / shared + 1) * head_dim;
                let scores: Vec<f64> = keys[..=position]
                    .iter()
                    .map(|key| dot(query, &key[kv.clone()]) / (head_dim as f64).sqrt())
                    .collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (weight, value) in weights.iter().zip(&values) {
                    for (out, value) in out.iter_mut().zip(&value[kv.clone()]) {
                        *out += weight / sum * value;
                    }
                }
            }
            add(state, &seen.product(&layer.o, position, &attended));
        }
    }

    /// `x / √(mean(x²) + eps) · weight`.
    fn normalized(&self, x: &[f64], weight: &[f64]) -> Vec<f64> {
        let scale = 1.0 / (dot(x, x) / x.len() as f64 + f64::from(self.config.rms_eps)).sqrt();
        x.iter().zip(weight).map(|(x, w)| x * scale * w).collect()
    }

    /// Turns pair i of every head by `position · theta^(−2i / rotary_dim)`.
    fn rotated(&self, mut heads: Vec<f64>, position: usize) -> Vec<f64> {
        let rotary_dim = self.config.rotary_dim;
        for head in heads.chunks_mut(self.config.head_dim) {
            for i in 0..rotary_dim / 2 {
                let (a, b) = match self.config.rope_style {
                    RopeStyle::Interleaved => (2 * i, 2 * i + 1),
                    RopeStyle::SplitHalf => (i, i + rotary_dim / 2),
                };
                let angle =
                    position as f64 * self.config.rope_theta.powf(-2.0 * i as f64 / rotary_dim as f64);
                let (sin, cos) = angle.sin_cos();
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
        heads
    }
}

/// Logits under int8 activations, and how settled they are.
///
/// Rounding to codes is not continuous: where an activation lies next to the middle between two codes, a computation that
/// errs in the last bit takes the other one, and everything behind it differs by far more than it erred. Only what no
/// such choice precedes can be compared closely.
#[derive(Clone, Debug)]
pub struct Int8Logits {
    /// `[tokens, vocab]`.
    pub logits: Vec<f64>,
    /// For every token the smallest error of activations, as a fraction of the largest of their group, that could turn a code
    /// of this token or of one before it.
    pub margins: Vec<f64>,
}

/// What products see of activations.
enum Seen<'a> {
    AsTheyAre,
    /// Rounded where weights are quantized; `margins` holds each token's own so far.
    Int8 {
        margins: &'a mut [f64],
    },
}

impl Seen<'_> {
    /// `x · weightᵀ` for the token at `position`.
    fn product(&mut self, weight: &Matrix, position: usize, x: &[f64]) -> Vec<f64> {
        let mut x = Cow::Borrowed(x);
        if let (Seen::Int8 { margins }, true) = (self, weight.quantized) {
            for group in x.to_mut().chunks_mut(GROUP) {
                let margin = round_to_int8(group);
                if let Some(smallest) = margins.get_mut(position) {
                    *smallest = smallest.min(margin);
                }
            }
        }
        weight.times(&x)
    }
}

/// Replaces a group by the nearest of 255 even steps from −max|x| to max|x|; its margin.
///
/// Errors of at most `e · max|x|` move both `x` and the step: `x / step`, which is at most 127, by no more than `254 · e`.
fn round_to_int8(group: &mut [f64]) -> f64 {
    let step = group.iter().fold(0.0, |max: f64, x| max.max(x.abs())) / 127.0;
    let mut margin = f64::INFINITY;
    for x in group.iter_mut().filter(|_| step > 0.0) {
        let steps = *x / step;
        // The distance to the next half.
        margin = margin.min((steps.abs().fract() - 0.5).abs() / 254.0);
        *x = steps.round_ties_even() * step;
    }
    margin
}

fn widened(weight: &HostWeight) -> Vec<f64> {
    weight.to_f32().into_iter().map(f64::from).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += what);
}
