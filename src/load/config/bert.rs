//! The shape of a BERT encoder, from the `config.json` of a transformers checkpoint.
//!
//! As with decoders, entries that change the result and are not understood are refused, never skipped.

use super::from_json;
use super::{MAX_EXTENT, MAX_LAYERS};
use crate::load::error::{LoadError, Result, printable};
use crate::load::names::BERT;
use crate::load::{SourceMetadata, WeightSource};
use portolan_ops::kernel::Activation;
use serde_json::Value;
use std::path::Path;

/// The activations read, under the names that files use.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
];

/// What a BERT encoder is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct BertConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Heads; divides `hidden`.
    pub num_heads: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Tokens a text can have.
    pub max_positions: usize,
    /// Kinds of text that the model tells apart; a sentence alone is of the first.
    pub token_types: usize,
    /// Added to the variance in norms.
    pub norm_eps: f32,
    /// Of the feed-forward layer.
    pub activation: Activation,
}

impl BertConfig {
    /// The configuration of an open model.
    ///
    /// # Errors
    /// `Key` and `MissingKey` for entries that are missing, of another type, implausible or of another family;
    /// `Tensor` for layers that the configuration does not count; `Format` for a GGUF file.
    pub fn from_source(source: &dyn WeightSource) -> Result<Self> {
        let config = match source.metadata() {
            SourceMetadata::Config(path, json) => Self::from_json(path, json)?,
            SourceMetadata::Gguf(_) => {
                return Err(LoadError::Format {
                    path: source.path().into(),
                    seen: "a GGUF file".into(),
                    wanted: "a safetensors folder: encoders are read from these only".into(),
                });
            }
            SourceMetadata::None => {
                let wanted = "the model's configuration beside the weights";
                return Err(LoadError::missing_key(source.path(), "config.json", wanted));
            }
        };
        for name in source.names() {
            let layer = BERT.find(source.naming(), name).and_then(|found| found.layer);
            if let Some(layer) = layer.filter(|&layer| layer >= config.layers) {
                let what = format!("is of layer {layer}, the configuration has {}", config.layers);
                return Err(LoadError::tensor(source.path(), name, what));
            }
        }
        Ok(config)
    }

    /// The configuration in the text of a `config.json`; `path` stands in messages.
    ///
    /// # Errors
    /// As [`BertConfig::from_source`].
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        let root = from_json::root(path, json)?;
        let architecture = root.get("architectures").and_then(Value::as_array).and_then(|a| a.first());
        match architecture.and_then(Value::as_str) {
            Some("BertModel") => {}
            Some(seen) => return Err(LoadError::key(path, "architectures", printable(seen), "BertModel")),
            None => return Err(LoadError::missing_key(path, "architectures", "BertModel")),
        }
        let position = root.text_if("position_embedding_type")?.filter(|&kind| kind != "absolute");
        if let Some(seen) = position {
            return Err(LoadError::key(path, "position_embedding_type", printable(seen), "absolute"));
        }
        if root.bool_or("is_decoder", false)? {
            return Err(LoadError::key(path, "is_decoder", "true", "false: an encoder sees the whole text"));
        }
        let act = root.text_if("hidden_act")?.unwrap_or("gelu");
        let Some((_, activation)) = ACTIVATIONS.iter().find(|(name, _)| *name == act) else {
            let names: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
            return Err(LoadError::key(path, "hidden_act", printable(act), names.join(", ")));
        };
        let config = Self {
            hidden: root.size("hidden_size")?,
            layers: root.size("num_hidden_layers")?,
            num_heads: root.size("num_attention_heads")?,
            ffn: root.size("intermediate_size")?,
            vocab: root.size("vocab_size")?,
            max_positions: root.size("max_position_embeddings")?,
            token_types: root.size_if("type_vocab_size")?.unwrap_or(2),
            norm_eps: root.number_if("layer_norm_eps")?.unwrap_or(1e-12) as f32,
            activation: *activation,
        };
        config.check(path)?;
        Ok(config)
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden / self.num_heads
    }

    fn check(&self, path: &Path) -> Result<()> {
        for (key, extent, most) in [
            ("hidden_size", self.hidden, MAX_EXTENT),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.num_heads, 1 << 16),
            ("intermediate_size", self.ffn, MAX_EXTENT),
            ("vocab_size", self.vocab, MAX_EXTENT),
            ("max_position_embeddings", self.max_positions, MAX_EXTENT),
            ("type_vocab_size", self.token_types, 1 << 16),
        ] {
            if extent == 0 || extent > most {
                return Err(LoadError::key(path, key, extent.to_string(), format!("from 1 to {most}")));
            }
        }
        if !self.hidden.is_multiple_of(self.num_heads) {
            let seen = format!("{} for a hidden size of {}", self.num_heads, self.hidden);
            return Err(LoadError::key(path, "num_attention_heads", seen, "a divisor of it"));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            let seen = self.norm_eps.to_string();
            return Err(LoadError::key(path, "layer_norm_eps", seen, "between 0 and 1"));
        }
        Ok(())
    }
}
