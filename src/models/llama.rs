//! The Llama family: Llama, Mistral, Qwen2, SmolLM2. Grouped-query attention with rotary positions, SwiGLU
//! feed-forward, RMS norms (Touvron et al. 2023).

use crate::Error;
use crate::load::WeightSource;
use crate::load::config::LlamaConfig;
use crate::load::names::LLAMA;
use crate::nn::{Batch, Embedding, KvCache, Linear, Loader, Precision, Progress, RmsNorm};
use portolan_core::{Scope, Stream, Tensor, call, ops};
use portolan_ops::attention::AttentionMask;
use portolan_ops::{DType, TensorSpec};

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct Llama {
    config: LlamaConfig,
    precision: Precision,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Linear,
}

#[derive(Clone, Debug)]
struct Layer {
    attn_norm: RmsNorm,
    qkv: Linear,
    o: Linear,
    ffn_norm: RmsNorm,
    gate_up: Linear,
    down: Linear,
}

impl Llama {
    /// Loads a model from an open file or folder.
    ///
    /// # Errors
    /// Those of the file (missing tensors, wrong extents) and of the device (memory).
    pub fn load(
        stream: &Stream,
        source: &dyn WeightSource,
        precision: Precision,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        let config = LlamaConfig::from_source(source)?;
        let mut loader = Loader::new(stream, source, LLAMA, precision, progress);
        let embedding = Embedding::load(&mut loader, "embedding.weight", config.vocab, config.hidden)?;
        let mut layers = Vec::new();
        for i in 0..config.layers {
            layers.push(Layer::load(&mut loader, &config, i)?);
        }
        let norm = RmsNorm::load(&mut loader, "norm.weight", 0, config.hidden, config.rms_eps)?;
        let output = if config.tied {
            Linear::tied(&loader, embedding.weight())?
        } else {
            Linear::load(&mut loader, &[("output", config.vocab)], 0, config.hidden, false)?
        };
        stream.synchronize()?;
        Ok(Self { config, precision, embedding, layers, norm, output })
    }

    /// What the model is made of.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// An empty cache that fits this model.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn cache(&self, stream: &Stream, batch: usize, max_len: usize) -> Result<KvCache, Error> {
        let config = &self.config;
        let dtype = if self.precision == Precision::Fast { DType::F16 } else { DType::F32 };
        KvCache::new(stream, config.layers, batch, max_len, config.num_kv_heads, config.head_dim, dtype)
    }

    /// Runs the batch's tokens and extends the cache: logits `[rows, vocab]` in f32.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(&self, stream: &Stream, batch: &Batch, cache: &mut KvCache) -> Result<Tensor, Error> {
        let mut residual = self.embedding.forward(stream, &batch.ids)?;
        let mut update: Option<Tensor> = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = Scope::numbered("layers", i);
            let x = match &update {
                None => layer.attn_norm.forward(stream, &residual)?,
                Some(update) => layer.attn_norm.forward_add(stream, update, &mut residual)?,
            };
            let attended = layer.attention(stream, &self.config, i, &x, batch, cache)?;
            let _scope = Scope::named("ffn");
            let x = layer.ffn_norm.forward_add(stream, &attended, &mut residual)?;
            let gated = ops::swiglu(stream, &layer.gate_up.forward(stream, &x)?)?;
            update = Some(layer.down.forward(stream, &gated)?);
        }
        let _scope = Scope::named("output");
        // Only the rows whose logits are wanted go through the last norm and the (large) output layer.
        let (mut residual, update) = match &batch.logit_rows {
            None => (residual, update),
            Some(rows) => (
                ops::gather_rows(stream, &residual, rows)?,
                update.map(|u| ops::gather_rows(stream, &u, rows)).transpose()?,
            ),
        };
        let x = match &update {
            None => self.norm.forward(stream, &residual)?,
            Some(update) => self.norm.forward_add(stream, update, &mut residual)?,
        };
        self.output.forward(stream, &x)
    }
}

impl Layer {
    fn load(loader: &mut Loader<'_>, config: &LlamaConfig, i: usize) -> Result<Self, Error> {
        let (hidden, ffn, eps) = (config.hidden, config.ffn, config.rms_eps);
        let (q, kv) = (config.q_width(), config.kv_width());
        let qkv = [("layers.{i}.q", q), ("layers.{i}.k", kv), ("layers.{i}.v", kv)];
        let gate_up = [("layers.{i}.gate", ffn), ("layers.{i}.up", ffn)];
        Ok(Self {
            attn_norm: RmsNorm::load(loader, "layers.{i}.attn_norm.weight", i, hidden, eps)?,
            qkv: Linear::load(loader, &qkv, i, hidden, config.qkv_bias)?,
            o: Linear::load(loader, &[("layers.{i}.o", hidden)], i, q, config.o_bias)?,
            ffn_norm: RmsNorm::load(loader, "layers.{i}.ffn_norm.weight", i, hidden, eps)?,
            gate_up: Linear::load(loader, &gate_up, i, hidden, config.mlp_bias)?,
            down: Linear::load(loader, &[("layers.{i}.down", hidden)], i, ffn, config.mlp_bias)?,
        })
    }

    fn attention(
        &self,
        stream: &Stream,
        config: &LlamaConfig,
        layer: usize,
        x: &Tensor,
        batch: &Batch,
        cache: &mut KvCache,
    ) -> Result<Tensor, Error> {
        let _scope = Scope::named("attention");
        let (heads, kv_heads, head_dim) = (config.num_heads, config.num_kv_heads, config.head_dim);
        let tokens = x.dims()[0];
        let qkv = self.qkv.forward(stream, x)?.reshape(&[tokens, heads + 2 * kv_heads, head_dim])?;
        // Queries and keys lie side by side, so one call turns both, in place.
        let qk = qkv.narrow(1, 0, heads + kv_heads)?;
        let rope =
            call::Rope::new(config.rope_style, &qk, &batch.positions, config.rope_theta, &mut qk.clone())?;
        stream.run(rope.rotary_dim(config.rotary_dim)?.scaling(config.rope_scaling)?)?;
        let (k, v) = (qkv.narrow(1, heads, kv_heads)?, qkv.narrow(1, heads + kv_heads, kv_heads)?);
        let (keys, values) = cache.append(stream, layer, &k, &v, batch)?;
        let mut out = stream.empty(&TensorSpec::of(x.dtype(), &[tokens, heads, head_dim])?)?;
        let q = qkv.narrow(1, 0, heads)?;
        let attention = call::Attention::new(&q, &keys, &values, &batch.q_lens, &batch.kv_lens, &mut out)?;
        let mask = config
            .sliding_window
            .map_or(AttentionMask::Causal, |window| AttentionMask::Window(window as u32));
        stream.run(attention.mask(mask)?)?;
        self.o.forward(stream, &out.reshape(&[tokens, heads * head_dim])?)
    }
}
