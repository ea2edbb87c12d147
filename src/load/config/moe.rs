//! The shape of a decoder with experts, from `config.json`.

use super::{LlamaConfig, MAX_EXTENT, from_json};
use crate::load::error::{LoadError, Result};
use crate::load::names::{NameMap, TensorName};
use crate::load::weights::{SourceMetadata, WeightSource};
use portolan_ops::moe::GateScore;
use std::path::Path;

/// The most experts a layer may claim.
const MAX_EXPERTS: usize = 1 << 16;

/// What a model is made of that is built like the Llama family, but for experts in its feed-forward layers.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// Everything but the experts; its `ffn` is the width of layers without any.
    pub decoder: LlamaConfig,
    /// Experts of a layer.
    pub experts: usize,
    /// Experts that a token goes to.
    pub top_k: usize,
    /// Width of an expert.
    pub expert_ffn: usize,
    /// Width of the expert that every token goes to.
    pub shared_ffn: Option<usize>,
    /// Whether the shared expert counts as much as a router of its own says.
    pub shared_router: bool,
    /// What turns a router's logits into scores.
    pub score: GateScore,
    /// Whether a bias is added to scores for the choice of experts.
    pub choice_bias: bool,
    /// Groups of experts, and how many of them are open to a token.
    pub groups: Option<(usize, usize)>,
    /// Whether the weights of a token's experts are divided by their sum.
    pub renormalize: bool,
    /// Factor of the weights.
    pub scale: f32,
    /// Of so many layers the last has experts.
    pub sparse_step: usize,
    /// Layers that have none all the same.
    pub dense_layers: Vec<usize>,
}

impl MoeConfig {
    /// The configuration of an open model whose tensors `names` lists.
    ///
    /// # Errors
    /// As [`LlamaConfig::from_source`]; `Key` for a GGUF file, of which experts are not read, and `Tensor` for weights that
    /// the configuration has no place for.
    pub fn from_source(source: &dyn WeightSource, names: NameMap) -> Result<Self> {
        let SourceMetadata::Config(path, json) = source.metadata() else {
            let wanted = "a folder with config.json and safetensors: experts are read from nothing else";
            return Err(LoadError::key(source.path(), "the model", "without config.json", wanted));
        };
        let config = from_json::read_moe(path, json)?;
        config.check_tensors(source, names)?;
        Ok(config)
    }

    /// As [`LlamaConfig::check_tensors`].
    pub(super) fn check_tensors(&self, source: &dyn WeightSource, names: NameMap) -> Result<()> {
        self.decoder.check_tensors(source, names)?;
        for name in source.names() {
            let Some(found) = names.find(source.naming(), name) else { continue };
            // Of another layer than the decoder's it can only be one that is not run.
            if found.layer.is_some_and(|layer| layer >= self.decoder.layers) {
                continue;
            }
            let unused = match found.expert.filter(|&expert| expert >= self.experts) {
                Some(expert) => format!("is of expert {expert}, the configuration has {}", self.experts),
                None if found.layer.is_some_and(|layer| self.lacks(found.tensor, layer)) => {
                    "is of a feed-forward layer that the configuration has not".into()
                }
                None => continue,
            };
            return Err(LoadError::tensor(source.path(), name, unused));
        }
        Ok(())
    }

    /// Whether a tensor is of experts where a layer has none, or of a plain layer where it has them.
    fn lacks(&self, tensor: &TensorName, layer: usize) -> bool {
        let sparse = self.is_sparse(layer);
        match tensor.canonical.trim_start_matches("layers.{i}.") {
            "gate.weight" | "up.weight" | "down.weight" => sparse,
            "router.weight" => !sparse,
            "router.bias" => !sparse || !self.choice_bias,
            part if part.starts_with("shared.") => !sparse || self.shared_ffn.is_none(),
            _ => tensor.is_of_experts() && !sparse,
        }
    }

    /// The configuration in the text of a `config.json`; `path` stands in messages.
    ///
    /// # Errors
    /// `Key` and `MissingKey`, as [`LlamaConfig::from_source`].
    pub fn from_json(path: &Path, json: &serde_json::Value) -> Result<Self> {
        from_json::read_moe(path, json)
    }

    /// Whether a layer has experts.
    pub fn is_sparse(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.sparse_step) && !self.dense_layers.contains(&layer)
    }

    pub(super) fn check(&self, path: &Path) -> Result<()> {
        for (key, extent, most) in [
            ("experts", self.experts, MAX_EXPERTS),
            ("experts of a token", self.top_k, self.experts),
            ("width of an expert", self.expert_ffn, MAX_EXTENT),
            ("width of the shared expert", self.shared_ffn.unwrap_or(1), MAX_EXTENT),
            ("step between layers with experts", self.sparse_step, MAX_EXTENT),
        ] {
            if extent == 0 || extent > most {
                return Err(LoadError::key(path, key, extent.to_string(), format!("from 1 to {most}")));
            }
        }
        if let Some((groups, open)) = self.groups {
            if groups == 0 || !self.experts.is_multiple_of(groups) {
                let wanted = format!("a divisor of the number of experts, {}", self.experts);
                return Err(LoadError::key(path, "n_group", groups.to_string(), wanted));
            }
            if open > groups || open * (self.experts / groups) < self.top_k {
                let wanted = format!("at most {groups}, and enough for {} experts", self.top_k);
                return Err(LoadError::key(path, "topk_group", open.to_string(), wanted));
            }
        }
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            let seen = self.scale.to_string();
            return Err(LoadError::key(path, "routed_scaling_factor", seen, "a number above 0"));
        }
        if self.decoder.mlp_bias {
            return Err(LoadError::key(path, "mlp_bias", "true", "false: biases of experts are not read"));
        }
        Ok(())
    }
}
