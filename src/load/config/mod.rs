//! The shape of a Llama-family model, from GGUF metadata or from `config.json`, checked for plausibility.
//!
//! The two readers are in `from_gguf.rs` and `from_json.rs`; here are the values they agree on and the checks both must pass.
//! What models with experts have besides is in `moe.rs`, latent attention in `deepseek.rs`; state-space models and encoders are apart, in `mamba.rs`, `bert.rs`
//! and `sentence.rs`.

mod bert;
mod deepseek;
mod fp8;
mod from_gguf;
mod from_json;
mod mamba;
mod moe;
mod sentence;

pub use bert::BertConfig;
pub use deepseek::DeepseekConfig;
pub use mamba::{Mamba2Config, MambaConfig, StateSpaceConfig};
pub use moe::MoeConfig;
pub use sentence::SentenceConfig;

pub(super) use fp8::{SCALE_SUFFIX, block_scheme};
pub(super) use from_json::root;

use super::error::{LoadError, Result};
use super::names::{LLAMA, NameMap, TensorName};
use super::weights::{SourceMetadata, WeightSource};
use crate::models::ModelInfo;
use crate::nn::BackboneConfig;
use portolan_ops::rope::{RopeScaling, RopeStyle};
use std::path::Path;

/// The largest extent a model may claim: beyond any that exists, and products of two stay addressable.
const MAX_EXTENT: usize = 1 << 28;
/// The most layers a model may claim.
const MAX_LAYERS: usize = 1 << 12;

/// Families of models: those of one are computed by the same code.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama, Mistral, Qwen2, SmolLM2.
    Llama,
    /// Mixtral.
    Mixtral,
    /// Qwen2-MoE, Qwen3-MoE.
    QwenMoe,
    /// DeepSeek-V3.
    DeepseekV3,
    /// Mamba.
    Mamba,
    /// Mamba-2.
    Mamba2,
}

impl Family {
    /// The family of an open model.
    ///
    /// # Errors
    /// `Key` and `MissingKey` for a configuration that names no architecture known here.
    pub fn from_source(source: &dyn WeightSource) -> Result<Self> {
        match source.metadata() {
            SourceMetadata::Config(path, json) => from_json::family(path, json),
            // Its reader says which architectures are read from this format, and what a file lacks.
            SourceMetadata::Gguf(_) | SourceMetadata::None => Ok(Family::Llama),
        }
    }
}

/// What a Llama-family model is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// The architecture's name in the file: `llama`, `qwen2`, `LlamaForCausalLM`, …
    pub architecture: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Layers that files have behind these, which guess further tokens ahead and are not run.
    pub unread_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Added to the mean square in norms.
    pub rms_eps: f32,
    /// Base of the rotation's frequencies.
    pub rope_theta: f64,
    /// How frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Which elements of a head this file's q and k are stored to pair.
    pub rope_style: RopeStyle,
    /// Elements of a head that are rotated.
    pub rotary_dim: usize,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Positions the model was made for.
    pub max_context: usize,
    /// A query sees this many positions back at most, itself included.
    pub sliding_window: Option<usize>,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub o_bias: bool,
    /// Whether the feed-forward layer has biases.
    pub mlp_bias: bool,
    /// Whether each head's q and k are normed before they are rotated.
    pub qk_norm: bool,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

impl LlamaConfig {
    /// The configuration of an open model.
    ///
    /// # Errors
    /// `Key` and `MissingKey` for entries that are missing, of another type, implausible or of a model of
    /// another family; `Tensor` for weights that contradict them.
    pub fn from_source(source: &dyn WeightSource) -> Result<Self> {
        let config = match source.metadata() {
            SourceMetadata::Gguf(metadata) => from_gguf::read(metadata, source),
            SourceMetadata::Config(path, json) => Self::from_json(path, json),
            SourceMetadata::None => Err(LoadError::missing_key(
                source.path(),
                "config.json",
                "the model's configuration beside the weights",
            )),
        }?;
        config.check_tensors(source, LLAMA)?;
        Ok(config)
    }

    /// Refuses weights that this configuration would leave out: without them the model would talk, and wrongly.
    fn check_tensors(&self, source: &dyn WeightSource, names: NameMap) -> Result<()> {
        for name in source.names() {
            let Some(found) = names.find(source.naming(), name) else { continue };
            let unused = match found.layer.filter(|&layer| layer >= self.layers) {
                Some(layer) if layer < self.layers + self.unread_layers => continue,
                Some(layer) => format!("is of layer {layer}, the configuration has {}", self.layers),
                None if self.lacks(found.tensor) => {
                    let what = if name.ends_with(".bias") { "bias" } else { "norm" };
                    format!("is a {what}, the configuration has none there")
                }
                None => continue,
            };
            return Err(LoadError::tensor(source.path(), name, unused));
        }
        Ok(())
    }

    /// Whether a tensor is a bias or a norm where the model has none.
    fn lacks(&self, tensor: &TensorName) -> bool {
        match tensor.canonical {
            "layers.{i}.q.bias" | "layers.{i}.k.bias" | "layers.{i}.v.bias" => !self.qkv_bias,
            "layers.{i}.o.bias" => !self.o_bias,
            "layers.{i}.q_norm.weight" | "layers.{i}.k_norm.weight" => !self.qk_norm,
            // No bias of a product, but of a choice.
            "layers.{i}.router.bias" => false,
            bias => bias.ends_with(".bias") && !self.mlp_bias,
        }
    }

    /// The configuration in the text of a `config.json`; `path` stands in messages.
    ///
    /// # Errors
    /// As [`LlamaConfig::from_source`].
    pub fn from_json(path: &Path, json: &serde_json::Value) -> Result<Self> {
        from_json::read(from_json::root(path, json)?, Family::Llama)
    }

    /// Extents of embedding, norms and output.
    pub fn backbone(&self) -> BackboneConfig {
        let Self { hidden, layers, vocab, rms_eps, tied, .. } = *self;
        BackboneConfig { hidden, layers, vocab, rms_eps, tied }
    }

    /// What a program has to know of the model.
    pub fn info(&self) -> ModelInfo<'_> {
        ModelInfo { vocab: self.vocab, max_context: self.max_context, eos: &self.eos }
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Checks what the readers cannot: ranges, divisibility, products.
    fn check(&self, path: &Path) -> Result<()> {
        let wrong = |key: &str, seen: String, wanted: &str| Err(LoadError::key(path, key, seen, wanted));
        for (key, extent, most) in [
            ("hidden size", self.hidden, MAX_EXTENT),
            ("layers", self.layers, MAX_LAYERS),
            ("heads", self.num_heads, 1 << 16),
            ("key and value heads", self.num_kv_heads, 1 << 16),
            ("head width", self.head_dim, 1 << 16),
            ("feed-forward width", self.ffn, MAX_EXTENT),
            ("vocabulary", self.vocab, MAX_EXTENT),
            ("context length", self.max_context, i32::MAX as usize),
        ] {
            if extent == 0 || extent > most {
                return wrong(key, extent.to_string(), &format!("from 1 to {most}"));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let seen = format!("{} for {} query heads", self.num_kv_heads, self.num_heads);
            return wrong("key and value heads", seen, "a divisor of the number of heads");
        }
        if self.rotary_dim == 0 || !self.rotary_dim.is_multiple_of(2) || self.rotary_dim > self.head_dim {
            let wanted = format!("an even number of at most the head width, {}", self.head_dim);
            return wrong("rotated elements", self.rotary_dim.to_string(), &wanted);
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            return wrong("norm epsilon", self.rms_eps.to_string(), "between 0 and 1");
        }
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            return wrong("rope base", self.rope_theta.to_string(), "a number above 1");
        }
        if self.sliding_window == Some(0) {
            return wrong("sliding window", "0".into(), "at least 1, or none");
        }
        let positive = |x: f32| x > 0.0 && x.is_finite();
        let scaling_fits = match self.rope_scaling {
            RopeScaling::None => true,
            RopeScaling::Linear { factor } => positive(factor),
            RopeScaling::Yarn { factor, original_len, beta_fast, beta_slow, attn_factor } => {
                positive(factor)
                    && original_len > 0
                    && positive(beta_slow)
                    && positive(beta_fast)
                    && beta_fast >= beta_slow
                    && attn_factor.is_none_or(positive)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_len } => {
                positive(factor)
                    && original_len > 0
                    && positive(low_freq_factor)
                    && high_freq_factor.is_finite()
                    && high_freq_factor > low_freq_factor
            }
        };
        if !scaling_fits {
            let seen = format!("{:?}", self.rope_scaling);
            return wrong("rope scaling", seen, "positive numbers, the fast end above the slow one");
        }
        // Extents are at most 2^28, heads and their widths at most 2^16: no product of two overflows.
        for (name, token) in
            self.eos.iter().map(|e| ("eos token", e)).chain(self.bos.iter().map(|b| ("bos token", b)))
        {
            if *token as usize >= self.vocab {
                return wrong(
                    name,
                    token.to_string(),
                    &format!("below the vocabulary's size, {}", self.vocab),
                );
            }
        }
        Ok(())
    }
}
