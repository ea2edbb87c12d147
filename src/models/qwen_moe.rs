//! Qwen2-MoE and Qwen3-MoE: a decoder in which some feed-forward layers have experts (Yang et al. 2024, 2025). The older
//! family has biases on q, k and v, and one more expert that every token goes to; the newer has norms of q and k.

use super::{LanguageModel, ModelInfo};
use crate::Error;
use crate::load::WeightSource;
use crate::load::config::MoeConfig;
use crate::load::names::QWEN_MOE;
use crate::nn::{Batch, Cache, Decoder, Loader, MoeLayer, Precision, Progress};
use portolan_core::{Stream, Tensor};

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct QwenMoe {
    config: MoeConfig,
    decoder: Decoder,
    ffn: Vec<MoeLayer>,
}

impl QwenMoe {
    /// Loads a model from an open folder.
    ///
    /// # Errors
    /// Those of the file (missing tensors, wrong extents) and of the device (memory).
    pub fn load(
        stream: &Stream,
        source: &dyn WeightSource,
        precision: Precision,
        progress: Progress<'_>,
    ) -> Result<Self, Error> {
        let config = MoeConfig::from_source(source, QWEN_MOE)?;
        let mut loader = Loader::new(stream, source, QWEN_MOE, precision, progress);
        let decoder = Decoder::load(&mut loader, &config.decoder)?;
        let mut ffn = Vec::new();
        for i in 0..config.decoder.layers {
            ffn.push(MoeLayer::load(&mut loader, &config, i)?);
        }
        stream.synchronize()?;
        Ok(Self { config, decoder, ffn })
    }

    /// What the model is made of.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }
}

impl LanguageModel for QwenMoe {
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
