//! Mixtral: Mistral's decoder with experts in every feed-forward layer (Jiang et al. 2024).

use super::{LanguageModel, ModelInfo};
use crate::Error;
use crate::load::WeightSource;
use crate::load::config::MoeConfig;
use crate::load::names::MIXTRAL;
use crate::nn::{Batch, Cache, Decoder, Loader, MoeFfn, Precision, Progress};
use portolan_core::{Stream, Tensor};

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct Mixtral {
    config: MoeConfig,
    decoder: Decoder,
    ffn: Vec<MoeFfn>,
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
        let config = MoeConfig::from_source(source, MIXTRAL)?;
        let mut loader = Loader::new(stream, source, MIXTRAL, precision, progress);
        let decoder = Decoder::load(&mut loader, &config.decoder)?;
        let mut ffn = Vec::new();
        for i in 0..config.decoder.layers {
            ffn.push(MoeFfn::load(&mut loader, &config, i)?);
        }
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
