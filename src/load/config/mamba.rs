//! The shape of a Mamba model of either generation, from the `config.json` of a transformers checkpoint.
//!
//! As with decoders, entries that change the result and are not understood are refused, never skipped. How many tokens
//! are scanned at a time (`chunk_size`) is the operator's business: it is seen in nothing but rounding.

use super::from_json::{self, Object};
use super::{MAX_EXTENT, MAX_LAYERS};
use crate::load::error::{LoadError, Result};
use crate::load::names::{MAMBA, MAMBA2, NameMap};
use crate::load::{SourceMetadata, WeightSource};
use crate::models::ModelInfo;
use crate::nn::BackboneConfig;
use portolan_ops::ssm::causal_conv1d::MAX_WIDTH;
use serde_json::Value;
use std::path::Path;

/// What both generations have.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSpaceConfig {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of what is convolved and scanned.
    pub inner: usize,
    /// Number of layers.
    pub layers: usize,
    /// Numbers in the state of a channel.
    pub state: usize,
    /// Tokens that a filter of the convolution covers.
    pub conv_width: usize,
    /// Number of tokens in the vocabulary.
    pub vocab: usize,
    /// Added to the mean square in norms.
    pub rms_eps: f32,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
    /// Whether the projections into and out of a layer have biases.
    pub bias: bool,
    /// Whether the convolution has one.
    pub conv_bias: bool,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
}

/// What a Mamba model is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct MambaConfig {
    /// What Mamba-2 has too.
    pub base: StateSpaceConfig,
    /// Numbers that the steps of all channels are made from.
    pub dt_rank: usize,
}

/// What a Mamba-2 model is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Mamba2Config {
    /// What Mamba has too.
    pub base: StateSpaceConfig,
    /// Heads.
    pub num_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Groups of heads that share input and output factors; divides `num_heads`.
    pub groups: usize,
}

impl MambaConfig {
    /// The configuration of an open model.
    ///
    /// # Errors
    /// `Key` and `MissingKey` for entries that are missing, of another type, implausible or of another family; `Tensor`
    /// for weights that contradict them.
    pub fn from_source(source: &dyn WeightSource) -> Result<Self> {
        let (path, json) = config_of(source)?;
        let config = Self::from_json(path, json)?;
        config.base.check_tensors(source, MAMBA)?;
        Ok(config)
    }

    /// The configuration in the text of a `config.json`; `path` stands in messages.
    ///
    /// # Errors
    /// `Key` and `MissingKey`, as [`from_source`](Self::from_source).
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        let root = from_json::root(path, json)?;
        from_json::architecture_of(root, ["MambaForCausalLM"].into_iter())?;
        let base = StateSpaceConfig::read(root, true)?;
        let automatic = root.get("time_step_rank").is_none_or(|rank| rank.as_str() == Some("auto"));
        let dt_rank = if automatic { base.hidden.div_ceil(16) } else { root.size("time_step_rank")? };
        expect_extent(path, "time_step_rank", dt_rank, MAX_EXTENT)?;
        Ok(Self { base, dt_rank })
    }
}

impl Mamba2Config {
    /// The configuration of an open model.
    ///
    /// # Errors
    /// As [`MambaConfig::from_source`].
    pub fn from_source(source: &dyn WeightSource) -> Result<Self> {
        let (path, json) = config_of(source)?;
        let config = Self::from_json(path, json)?;
        config.base.check_tensors(source, MAMBA2)?;
        Ok(config)
    }

    /// The configuration in the text of a `config.json`; `path` stands in messages.
    ///
    /// # Errors
    /// `Key` and `MissingKey`, as [`from_source`](Self::from_source).
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        let root = from_json::root(path, json)?;
        from_json::architecture_of(root, ["Mamba2ForCausalLM"].into_iter())?;
        let config = Self {
            base: StateSpaceConfig::read(root, false)?,
            num_heads: root.size("num_heads")?,
            head_dim: root.size("head_dim")?,
            groups: root.size("n_groups")?,
        };
        expect_unlimited(root)?;
        let (heads, inner) = (config.num_heads, config.base.inner);
        expect_extent(path, "num_heads", heads, inner)?;
        if heads.checked_mul(config.head_dim) != Some(inner) {
            let seen = format!("{} for {heads} heads", config.head_dim);
            return Err(LoadError::key(path, "head_dim", seen, format!("their share of {inner}")));
        }
        expect_extent(path, "n_groups", config.groups, heads)?;
        if !heads.is_multiple_of(config.groups) {
            let wanted = format!("a divisor of the number of heads, {heads}");
            return Err(LoadError::key(path, "n_groups", config.groups.to_string(), wanted));
        }
        Ok(config)
    }

    /// Channels that are convolved: what is scanned, and its input and output factors.
    pub fn conv_channels(&self) -> usize {
        self.base.inner + 2 * self.groups * self.base.state
    }
}

impl StateSpaceConfig {
    /// Extents of embedding, norms and output.
    pub fn backbone(&self) -> BackboneConfig {
        let Self { hidden, layers, vocab, rms_eps, tied, .. } = *self;
        BackboneConfig { hidden, layers, vocab, rms_eps, tied }
    }

    /// What a program has to know of the model: it sees as many tokens as can be counted.
    pub fn info(&self) -> ModelInfo<'_> {
        ModelInfo { vocab: self.vocab, max_context: i32::MAX as usize, eos: &self.eos }
    }

    fn read(root: Object<'_>, tied: bool) -> Result<Self> {
        root.expect_silu()?;
        root.expect_plain_weights()?;
        let hidden = root.size("hidden_size")?;
        let expand = root.number_if("expand")?.unwrap_or(2.0);
        let inner = (expand * hidden as f64) as usize;
        if let Some(seen) = root.size_if("intermediate_size")?.filter(|&seen| seen != inner) {
            let wanted = format!("{inner}, `expand` times `hidden_size`");
            return Err(LoadError::key(root.path(), "intermediate_size", seen.to_string(), wanted));
        }
        let config = Self {
            hidden,
            inner,
            layers: root.size("num_hidden_layers")?,
            state: root.size("state_size")?,
            conv_width: root.size_if("conv_kernel")?.unwrap_or(4),
            vocab: root.size("vocab_size")?,
            rms_eps: root.number_if("layer_norm_epsilon")?.unwrap_or(1e-5) as f32,
            tied: root.bool_or("tie_word_embeddings", tied)?,
            bias: root.bool_or("use_bias", false)?,
            conv_bias: root.bool_or("use_conv_bias", true)?,
            eos: from_json::tokens(root, "eos_token_id")?,
        };
        config.check(root.path())?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        for (key, extent, most) in [
            ("hidden_size", self.hidden, MAX_EXTENT),
            ("expand", self.inner, MAX_EXTENT),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("state_size", self.state, 1 << 16),
            ("conv_kernel", self.conv_width, MAX_WIDTH),
            ("vocab_size", self.vocab, MAX_EXTENT),
        ] {
            expect_extent(path, key, extent, most)?;
        }
        if !(self.rms_eps > 0.0 && self.rms_eps < 1.0) {
            let seen = self.rms_eps.to_string();
            return Err(LoadError::key(path, "layer_norm_epsilon", seen, "between 0 and 1"));
        }
        if let Some(token) = self.eos.iter().find(|&&token| token as usize >= self.vocab) {
            let wanted = format!("below the vocabulary's size, {}", self.vocab);
            return Err(LoadError::key(path, "eos_token_id", token.to_string(), wanted));
        }
        Ok(())
    }

    /// Refuses weights that this configuration would leave out: without them the model would talk, and wrongly.
    fn check_tensors(&self, source: &dyn WeightSource, names: NameMap) -> Result<()> {
        for name in source.names() {
            let Some(found) = names.find(source.naming(), name) else { continue };
            let unused = match (found.layer, found.tensor.canonical) {
                (Some(layer), _) if layer >= self.layers => {
                    format!("is of layer {layer}, the configuration has {}", self.layers)
                }
                (_, "layers.{i}.in.bias" | "layers.{i}.out.bias") if !self.bias => {
                    "is a bias, the configuration has none there".into()
                }
                (_, "layers.{i}.conv.bias") if !self.conv_bias => {
                    "is a bias, the configuration has none there".into()
                }
                _ => continue,
            };
            return Err(LoadError::tensor(source.path(), name, unused));
        }
        Ok(())
    }
}

fn config_of(source: &dyn WeightSource) -> Result<(&Path, &Value)> {
    match source.metadata() {
        SourceMetadata::Config(path, json) => Ok((path, json)),
        _ => {
            let wanted = "a folder with config.json and safetensors: these models are read from nothing else";
            Err(LoadError::key(source.path(), "the model", "without config.json", wanted))
        }
    }
}

fn expect_extent(path: &Path, key: &str, extent: usize, most: usize) -> Result<()> {
    match extent == 0 || extent > most {
        true => Err(LoadError::key(path, key, extent.to_string(), format!("from 1 to {most}"))),
        false => Ok(()),
    }
}

/// Fails where steps have a limit that they could reach: they are above 0 and have no end.
fn expect_unlimited(root: Object<'_>) -> Result<()> {
    let Some(limit) = root.get("time_step_limit") else { return Ok(()) };
    let infinite = |x: &Value| x.is_null() || x.get("__float__").and_then(Value::as_str) == Some("Infinity");
    match limit.as_array().map(Vec::as_slice) {
        Some([low, high]) if low.as_f64().is_some_and(|low| low <= 0.0) && infinite(high) => Ok(()),
        _ => Err(root.wrong("time_step_limit", limit, "[0.0, Infinity]: limits of steps are not read")),
    }
}
