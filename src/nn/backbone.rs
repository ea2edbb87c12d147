//! The residual stream that language models share: embedding, a norm before every part of every layer, output. Each model
//! brings the parts.

use crate::Error;
use crate::nn::{Batch, Embedding, Layout, Linear, Loader, RmsNorm};
use portolan_core::{Scope, Stream, Tensor, ops};

/// Extents of a backbone.
#[derive(Clone, Copy, Debug)]
pub struct BackboneConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Added to the mean square in norms.
    pub rms_eps: f32,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
}

/// All of a model but the parts of its layers, each of which reads what a norm makes of the stream and adds to it
/// (Xiong et al. 2020).
#[derive(Clone, Debug)]
pub struct Backbone {
    embedding: Embedding,
    /// Of each layer, the norms of its parts.
    layers: Vec<Vec<RmsNorm>>,
    norm: RmsNorm,
    output: Linear,
    layout: Layout,
}

impl Backbone {
    /// Loads embedding, norms and output; a layer has one part for each of `norms`, named without `layers.{i}` and
    /// `weight`.
    ///
    /// # Errors
    /// Those of the file (missing tensors, wrong extents) and of the device (memory).
    pub fn load(loader: &mut Loader<'_>, config: &BackboneConfig, norms: &[&str]) -> Result<Self, Error> {
        let BackboneConfig { hidden, vocab, rms_eps: eps, .. } = *config;
        let embedding = Embedding::load(loader, "embedding.weight", vocab, hidden)?;
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let norm =
                |name: &&str| RmsNorm::load(loader, &format!("layers.{{i}}.{name}.weight"), i, hidden, eps);
            layers.push(norms.iter().map(norm).collect::<Result<_, Error>>()?);
        }
        let norm = RmsNorm::load(loader, "norm.weight", 0, hidden, eps)?;
        let output = match config.tied {
            true => Linear::tied(loader, embedding.weight())?,
            false => Linear::load(loader, &[("output", vocab)], 0, hidden, false)?,
        };
        Ok(Self { embedding, layers, norm, output, layout: loader.layout().clone() })
    }

    /// Runs the batch's tokens: logits `[rows, vocab]` in f32. `part` computes what a rank has of a part of a layer, by the
    /// numbers of both: `[tokens, hidden]` to the same, which is summed over the ranks.
    ///
    /// # Errors
    /// As [`Stream::run`].
    pub fn forward(
        &self,
        stream: &Stream,
        batch: &Batch,
        part: &mut dyn FnMut(usize, usize, &Tensor) -> Result<Tensor, Error>,
    ) -> Result<Tensor, Error> {
        let mut residual = self.embedding.forward(stream, &batch.ids)?;
        let mut update: Option<Tensor> = None;
        for (i, norms) in self.layers.iter().enumerate() {
            let _scope = Scope::numbered("layers", i);
            for (at, norm) in norms.iter().enumerate() {
                let x = normed(stream, norm, update.as_ref(), &mut residual)?;
                let made = part(i, at, &x)?;
                self.layout.sum(stream, &made)?;
                update = Some(made);
            }
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
        let x = normed(stream, &self.norm, update.as_ref(), &mut residual)?;
        self.output.forward(stream, &x)
    }
}

/// The norm of the stream behind what the last part adds to it.
fn normed(
    stream: &Stream,
    norm: &RmsNorm,
    update: Option<&Tensor>,
    residual: &mut Tensor,
) -> Result<Tensor, Error> {
    match update {
        None => norm.forward(stream, residual),
        Some(update) => norm.forward_add(stream, update, residual),
    }
}
