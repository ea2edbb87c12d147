//! The decoder that models share: attention and norms along a residual stream. Each model brings its feed-forward layers.

use crate::Error;
use crate::load::config::LlamaConfig;
use crate::models::ModelInfo;
use crate::nn::{Attention, Batch, Embedding, KvCache, Linear, Loader, Precision, RmsNorm};
use portolan_core::{Scope, Stream, Tensor, ops};
use portolan_ops::DType;

/// All of a model but its feed-forward layers. Every layer normalises what it reads (Xiong et al. 2020).
#[derive(Clone, Debug)]
pub struct Decoder {
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
    attention: Attention,
    ffn_norm: RmsNorm,
}

impl Decoder {
    /// Loads what the configuration says, feed-forward layers apart.
    ///
    /// # Errors
    /// Those of the file (missing tensors, wrong extents) and of the device (memory).
    pub fn load(loader: &mut Loader<'_>, config: &LlamaConfig) -> Result<Self, Error> {
        let (hidden, vocab, eps) = (config.hidden, config.vocab, config.rms_eps);
        let embedding = Embedding::load(loader, "embedding.weight", vocab, hidden)?;
        let mut layers = Vec::new();
        for i in 0..config.layers {
            layers.push(Layer {
                attn_norm: RmsNorm::load(loader, "layers.{i}.attn_norm.weight", i, hidden, eps)?,
                attention: Attention::load(loader, config, i)?,
                ffn_norm: RmsNorm::load(loader, "layers.{i}.ffn_norm.weight", i, hidden, eps)?,
            });
        }
        let norm = RmsNorm::load(loader, "norm.weight", 0, hidden, eps)?;
        let output = match config.tied {
            true => Linear::tied(loader, embedding.weight())?,
            false => Linear::load(loader, &[("output", vocab)], 0, hidden, false)?,
        };
        Ok(Self { config: config.clone(), precision: loader.precision(), embedding, layers, norm, output })
    }

    /// What the decoder is made of.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Vocabulary and limits.
    pub fn info(&self) -> ModelInfo<'_> {
        let config = &self.config;
        ModelInfo { vocab: config.vocab, max_context: config.max_context, eos: &config.eos }
    }

    /// An empty cache that fits.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn cache(&self, stream: &Stream, batch: usize, max_len: usize) -> Result<KvCache, Error> {
        let config = &self.config;
        let dtype = if self.precision == Precision::Fast { DType::F16 } else { DType::F32 };
        KvCache::new(stream, config.layers, batch, max_len, config.num_kv_heads, config.head_dim, dtype)
    }

    /// Runs the batch's tokens and extends the cache: logits `[rows, vocab]` in f32. `ffn` is the feed-forward layer of a
    /// number, `[tokens, hidden]` to the same.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(
        &self,
        stream: &Stream,
        batch: &Batch,
        cache: &mut KvCache,
        ffn: &dyn Fn(usize, &Tensor) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        let mut residual = self.embedding.forward(stream, &batch.ids)?;
        let mut update: Option<Tensor> = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = Scope::numbered("layers", i);
            let x = match &update {
                None => layer.attn_norm.forward(stream, &residual)?,
                Some(update) => layer.attn_norm.forward_add(stream, update, &mut residual)?,
            };
            let attended = layer.attention.forward(stream, &self.config, &x, batch, cache)?;
            let _scope = Scope::named("ffn");
            let x = layer.ffn_norm.forward_add(stream, &attended, &mut residual)?;
            update = Some(ffn(i, &x)?);
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
