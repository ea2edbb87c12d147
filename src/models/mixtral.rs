//! Mixtral, Qwen2-MoE and Qwen3-MoE: Llama's decoder with experts in its feed-forward layers (Jiang et al. 2024, Yang et
//! al. 2024, 2025). They differ in what their configurations say: which layers have experts, whether one expert is
//! every token's, biases on q, k and v, norms of q and k.

use super::{LanguageModel, ModelInfo};
use crate::Error;
use crate::load::WeightSource;
use crate::load::config::{Family, MoeConfig};
use crate::load::names::{MIXTRAL, QWEN_MOE};
use crate::nn::{Batch, Cache, Decoder, Layout, Loader, MoeLayer, Precision, Progress};
use portolan_core::{Stream, Tensor};

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct Mixtral {
    config: MoeConfig,
    decoder: Decoder,
    ffn: Vec<MoeLayer>,
}

impl Mixtral {
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
        let names = if Family::from_source(source)? == Family::Mixtral { MIXTRAL } else { QWEN_MOE };
        let config = MoeConfig::from_source(source, names)?;
        let mut loader = Loader::new(stream, source, names, precision, progress).of_rank(layout);
        let decoder = Decoder::load(&mut loader, &config.decoder)?;
        let ffn = (0..config.decoder.layers).map(|i| MoeLayer::load(&mut loader, &config, i));
        let ffn = ffn.collect::<Result<_, Error>>()?;
        stream.synchronize()?;
        Ok(Self { config, decoder, ffn })
    }

    /// What the model is made of.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }
}

impl LanguageModel for Mixtral {
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
