//! What every model that continues a text offers, whatever it is built from.

use crate::Error;
use crate::load::WeightSource;
use crate::load::config::Family;
use crate::models::{DeepseekV3, Llama, Mamba, Mamba2, Mixtral};
use crate::nn::{Batch, Cache, Layout, Precision, Progress};
use portolan_core::{Stream, Tensor};

/// What a program has to know of a model to talk to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelInfo<'a> {
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Positions the model was made for.
    pub max_context: usize,
    /// Tokens that end a text.
    pub eos: &'a [u32],
}

/// A model that predicts the token behind every token.
pub trait LanguageModel: Send + Sync + core::fmt::Debug {
    /// Its vocabulary and its limits.
    fn info(&self) -> ModelInfo<'_>;

    /// An empty cache that fits this model.
    ///
    /// # Errors
    /// `OutOfMemory`.
    fn cache(&self, stream: &Stream, batch: usize, max_len: usize) -> Result<Cache, Error>;

    /// Runs the batch's tokens and extends the cache, one that this model made: logits `[rows, vocab]` in f32.
    ///
    /// # Errors
    /// As [`Stream::run`]; `Attribute` for a cache of another kind of model.
    fn forward(&self, stream: &Stream, batch: &Batch, cache: &mut Cache) -> Result<Tensor, Error>;
}

/// Loads the model that an open file or folder holds, of any family.
///
/// # Errors
/// Those of the file (an architecture not known here, missing tensors, wrong extents) and of the device (memory).
pub fn load(
    stream: &Stream,
    source: &dyn WeightSource,
    precision: Precision,
    progress: Progress<'_>,
) -> Result<Box<dyn LanguageModel>, Error> {
    load_rank(stream, source, precision, &Layout::default(), progress)
}

/// Loads what one rank of a group has of a model. All ranks run the same batches in the same order, each with a cache that
/// its model makes, and get the same logits.
///
/// # Errors
/// As [`load`]; `Attribute` where the ranks cannot share the model equally.
pub fn load_rank(
    stream: &Stream,
    source: &dyn WeightSource,
    precision: Precision,
    layout: &Layout,
    progress: Progress<'_>,
) -> Result<Box<dyn LanguageModel>, Error> {
    Ok(match Family::from_source(source)? {
        Family::Llama => Box::new(Llama::load_rank(stream, source, precision, layout, progress)?),
        Family::Mixtral | Family::QwenMoe => {
            Box::new(Mixtral::load_rank(stream, source, precision, layout, progress)?)
        }
        Family::DeepseekV3 => Box::new(DeepseekV3::load_rank(stream, source, precision, layout, progress)?),
        Family::Mamba => Box::new(Mamba::load_rank(stream, source, precision, layout, progress)?),
        Family::Mamba2 => Box::new(Mamba2::load_rank(stream, source, precision, layout, progress)?),
    })
}
