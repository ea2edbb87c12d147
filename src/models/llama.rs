//! The Llama family: Llama, Mistral, Qwen2, SmolLM2. Grouped-query attention with rotary positions, SwiGLU
//! feed-forward, RMS norms (Touvron et al. 2023).

use super::{LanguageModel, ModelInfo};
use crate::Error;
use crate::load::WeightSource;
use crate::load::config::LlamaConfig;
use crate::load::names::LLAMA;
use crate::nn::{Batch, Cache, Decoder, Ffn, Layout, Loader, Precision, Progress};
use portolan_core::{Stream, Tensor};

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct Llama {
    decoder: Decoder,
    ffn: Vec<Ffn>,
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
        Self::load_rank(stream, source, precision, &Layout::default(), progress)
    }

    /// Loads what one rank has of a model.
    ///
    /// # Errors
    /// As [`load`](Self::load); `Attribute` where the ranks cannot share it equally.
    pub fn load_rank(
        stream: &Stream,
        source: &dyn WeightSource,
        precision: Precision,
        layout: &Layout,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        let config = LlamaConfig::from_source(source)?;
        let mut loader = Loader::new(stream, source, LLAMA, precision, progress).of_rank(layout);
        let decoder = Decoder::load(&mut loader, &config)?;
        let mut ffn = Vec::new();
        for i in 0..config.layers {
            ffn.push(Ffn::load(&mut loader, "layers.{i}", i, config.hidden, config.ffn, config.mlp_bias)?);
        }
        stream.synchronize()?;
        Ok(Self { decoder, ffn })
    }

    /// What the model is made of.
    pub fn config(&self) -> &LlamaConfig {
        self.decoder.config()
    }
}

impl LanguageModel for Llama {
    fn info(&self) -> ModelInfo<'_> {
        self.decoder.info()
    }

    fn cache(&self, stream: &Stream, batch: usize, max_len: usize) -> Result<Cache, Error> {
        self.decoder.cache(stream, batch, max_len)
    }

    fn forward(&self, stream: &Stream, batch: &Batch, cache: &mut Cache) -> Result<Tensor, Error> {
        self.decoder.forward(stream, batch, cache, &|layer, x| self.ffn[layer].forward(stream, x))
    }
}
