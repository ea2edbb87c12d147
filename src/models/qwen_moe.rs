//! Qwen2-MoE and Qwen3-MoE: a decoder in which some feed-forward layers have experts (Yang et al. 2024, 2025). The older
//! family has biases on q, k and v, and one more expert that every token goes to; the newer has norms of q and k.

use super::{LanguageModel, ModelInfo};
use crate::Error;
use crate::load::WeightSource;
use crate::load::config::MoeConfig;
use crate::load::names::QWEN_MOE;
use crate::nn::{Batch, Cache, Decoder, Ffn, Linear, Loader, MoeFfn, Precision, Progress};
use portolan_core::{Stream, Tensor, call, ops};
use portolan_ops::kernel::{BinaryKind, UnaryKind};

/// A model's weights on a device.
#[derive(Clone, Debug)]
pub struct QwenMoe {
    config: MoeConfig,
    decoder: Decoder,
    ffn: Vec<Layer>,
}

/// A feed-forward layer.
#[derive(Clone, Debug)]
enum Layer {
    Dense(Box<Ffn>),
    Sparse(Box<(MoeFfn, Option<SharedExpert>)>),
}

/// The expert of every token, which counts as much as its own router says.
#[derive(Clone, Debug)]
struct SharedExpert {
    router: Linear,
    ffn: Ffn,
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
            ffn.push(Layer::load(&mut loader, &config, i)?);
        }
        stream.synchronize()?;
        Ok(Self { config, decoder, ffn })
    }

    /// What the model is made of.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }
}

impl Layer {
    fn load(loader: &mut Loader<'_>, config: &MoeConfig, i: usize) -> Result<Self, Error> {
        let hidden = config.decoder.hidden;
        if !config.is_sparse(i) {
            let ffn = Ffn::load(loader, "layers.{i}", i, hidden, config.decoder.ffn, false)?;
            return Ok(Layer::Dense(Box::new(ffn)));
        }
        let shared = match config.shared_ffn {
            None => None,
            Some(width) => Some(SharedExpert {
                router: Linear::load(loader, &[("layers.{i}.shared.router", 1)], i, hidden, false)?,
                ffn: Ffn::load(loader, "layers.{i}.shared", i, hidden, width, false)?,
            }),
        };
        Ok(Layer::Sparse(Box::new((MoeFfn::load(loader, config, i)?, shared))))
    }

    fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        let (moe, shared) = match self {
            Layer::Dense(ffn) => return ffn.forward(stream, x),
            Layer::Sparse(sparse) => sparse.as_ref(),
        };
        let routed = moe.forward(stream, x)?;
        if let Some(shared) = shared {
            let shared = shared.forward(stream, x)?;
            stream.run(call::Binary::add(&routed, &shared, &mut routed.clone())?)?;
        }
        Ok(routed)
    }
}

impl SharedExpert {
    /// `σ(router(x)) · ffn(x)`.
    fn forward(&self, stream: &Stream, x: &Tensor) -> Result<Tensor, Error> {
        let weight = ops::unary(stream, UnaryKind::Sigmoid, &self.router.forward(stream, x)?)?;
        Ok(ops::binary(stream, BinaryKind::Mul, &self.ffn.forward(stream, x)?, &weight)?)
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
