//! The decoder that models share: a backbone with attention. Each model brings its feed-forward layers.

use crate::Error;
use crate::load::config::LlamaConfig;
use crate::models::ModelInfo;
use crate::nn::{Attention, Backbone, Batch, Cache, KvCache, Loader, Precision};
use portolan_core::{Scope, Stream, Tensor};

/// All of a model but its feed-forward layers.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: LlamaConfig,
    precision: Precision,
    backbone: Backbone,
    attention: Vec<Attention>,
}

impl Decoder {
    /// Norms before attention and before the feed-forward layer.
    pub(crate) const NORMS: [&str; 2] = ["attn_norm", "ffn_norm"];

    /// Loads what the configuration says, feed-forward layers apart.
    ///
    /// # Errors
    /// Those of the file (missing tensors, wrong extents) and of the device (memory).
    pub fn load(loader: &mut Loader<'_>, config: &LlamaConfig) -> Result<Self, Error> {
        let backbone = Backbone::load(loader, &config.backbone(), &Self::NORMS)?;
        let attention = (0..config.layers).map(|i| Attention::load(loader, config, i));
        let attention = attention.collect::<Result<_, Error>>()?;
        Ok(Self { config: config.clone(), precision: loader.precision(), backbone, attention })
    }

    /// What the decoder is made of.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Vocabulary and limits.
    pub fn info(&self) -> ModelInfo<'_> {
        self.config.info()
    }

    /// An empty cache that fits.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn cache(&self, stream: &Stream, batch: usize, max_len: usize) -> Result<Cache, Error> {
        let config = &self.config;
        let heads = self.attention.first().map_or(0, Attention::kv_heads);
        let head_dim = config.head_dim;
        let dtype = self.precision.cache_dtype();
        Ok(KvCache::new(stream, config.layers, batch, max_len, heads, head_dim, dtype)?.into())
    }

    /// Runs the batch's tokens and extends the cache: logits `[rows, vocab]` in f32. `ffn` is the feed-forward layer of a
    /// number, `[tokens, hidden]` to the same.
    ///
    /// # Errors
    /// As [`Stream::run`]; `Attribute` for a cache of another kind of model.
    pub fn forward(
        &self,
        stream: &Stream,
        batch: &Batch,
        cache: &mut Cache,
        ffn: &dyn Fn(usize, &Tensor) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        let cache = cache.key_value()?;
        self.backbone.forward(stream, batch, &mut |layer, part, x| {
            if part == 0 {
                return self.attention[layer].forward(stream, &self.config, x, batch, cache);
            }
            let _scope = Scope::named("ffn");
            ffn(layer, x)
        })
    }
}
