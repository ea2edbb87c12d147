//! The shape of a DeepSeek-V3 model, from `config.json`: experts as in `moe.rs`, and attention over latent entries.

use super::from_json::{self, Object};
use super::{Family, MAX_EXTENT, MoeConfig};
use crate::load::error::{LoadError, Result, printable};
use crate::load::names::DEEPSEEK;
use crate::load::weights::{SourceMetadata, WeightSource};
use portolan_ops::moe::GateScore;
use portolan_ops::rope::RopeStyle;
use serde_json::Value;
use std::path::Path;

/// What a DeepSeek-V3 model is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct DeepseekConfig {
    /// Everything but attention. A head's width is that of its query and key, of which the last elements are rotated.
    pub moe: MoeConfig,
    /// Width that queries are made from, where they are not made from the residual stream itself.
    pub q_rank: Option<usize>,
    /// Width of a latent entry, without its rotated part.
    pub kv_rank: usize,
    /// Width of a head's value.
    pub v_head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
}

impl DeepseekConfig {
    /// The configuration of an open model.
    ///
    /// # Errors
    /// As [`MoeConfig::from_source`]; layers that guess further tokens ahead may be there, and are not run.
    pub fn from_source(source: &dyn WeightSource) -> Result<Self> {
        let SourceMetadata::Config(path, json) = source.metadata() else {
            let wanted =
                "a folder with config.json and safetensors: latent attention is read from nothing else";
            return Err(LoadError::key(source.path(), "the model", "without config.json", wanted));
        };
        let config = Self::from_json(path, json)?;
        config.moe.check_tensors(source, DEEPSEEK)?;
        for name in source.names() {
            let found = DEEPSEEK.find(source.naming(), name).map(|found| found.tensor.canonical);
            let unused = match found {
                Some("layers.{i}.q.weight") => config.q_rank.is_some(),
                Some("layers.{i}.q_a.weight" | "layers.{i}.q_b.weight") => config.q_rank.is_none(),
                _ => false,
            };
            if unused {
                let what = match config.q_rank {
                    Some(rank) => format!("makes queries at once, `q_lora_rank` is {rank}"),
                    None => "makes queries in two steps, `q_lora_rank` is none".into(),
                };
                return Err(LoadError::tensor(source.path(), name, what));
            }
        }
        Ok(config)
    }

    /// The configuration in the text of a `config.json`; `path` stands in messages.
    ///
    /// # Errors
    /// `Key` and `MissingKey`, as [`from_source`](Self::from_source).
    pub fn from_json(path: &Path, json: &Value) -> Result<Self> {
        let root = from_json::root(path, json)?;
        let mut decoder = from_json::read(root, Family::DeepseekV3)?;
        expect_known_switches(root, decoder.num_heads)?;
        if root.bool_or("rope_interleave", true)? {
            decoder.rope_style = RopeStyle::Interleaved;
        }
        let shared = root.size_if("n_shared_experts")?.unwrap_or(1);
        let expert_ffn = root.size("moe_intermediate_size")?;
        let dense = root.size_if("first_k_dense_replace")?.unwrap_or(3);
        let (q_rank, kv_rank) = (root.size_if("q_lora_rank")?, root.size("kv_lora_rank")?);
        let v_head_dim = root.size("v_head_dim")?;
        for (key, extent) in [
            ("q_lora_rank", q_rank.unwrap_or(1)),
            ("kv_lora_rank", kv_rank),
            ("v_head_dim", v_head_dim),
            ("qk_nope_head_dim", decoder.head_dim - decoder.rotary_dim),
        ] {
            if extent == 0 || extent > MAX_EXTENT {
                return Err(LoadError::key(path, key, extent.to_string(), format!("from 1 to {MAX_EXTENT}")));
            }
        }
        let scale = sharpness(root)? / (decoder.head_dim as f64).sqrt();
        let moe = MoeConfig {
            experts: root.size("n_routed_experts")?,
            top_k: root.size("num_experts_per_tok")?,
            expert_ffn,
            shared_ffn: (shared > 0).then(|| shared.saturating_mul(expert_ffn)),
            shared_router: false,
            score: GateScore::Sigmoid,
            choice_bias: true,
            groups: Some((root.size("n_group")?, root.size("topk_group")?)),
            renormalize: root.bool_or("norm_topk_prob", true)?,
            scale: root.number_if("routed_scaling_factor")?.unwrap_or(2.5) as f32,
            sparse_step: 1,
            dense_layers: (0..dense.min(decoder.layers)).collect(),
            decoder,
        };
        moe.check(path)?;
        Ok(Self { moe, q_rank, kv_rank, v_head_dim, scale: scale as f32 })
    }

    /// Width of the part of a head that is rotated.
    pub fn rope_dim(&self) -> usize {
        self.moe.decoder.rotary_dim
    }

    /// Width of the part that is not.
    pub fn nope_dim(&self) -> usize {
        self.moe.decoder.head_dim - self.rope_dim()
    }

    /// Width of a latent entry with its rotated part, which all heads share.
    pub fn entry_width(&self) -> usize {
        self.kv_rank + self.rope_dim()
    }
}

/// Refuses what other models of this kind have.
fn expect_known_switches(root: Object<'_>, heads: usize) -> Result<()> {
    if root.bool_or("attention_bias", false)? {
        let wanted = "false: biases of latent attention are not read";
        return Err(LoadError::key(root.path(), "attention_bias", "true", wanted));
    }
    for (key, wanted) in [("num_key_value_heads", heads), ("moe_layer_freq", 1)] {
        if let Some(seen) = root.size_if(key)?.filter(|&seen| seen != wanted) {
            return Err(LoadError::key(root.path(), key, seen.to_string(), wanted.to_string()));
        }
    }
    for (key, wanted) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if let Some(seen) = root.text_if(key)?.filter(|&seen| seen != wanted) {
            return Err(LoadError::key(root.path(), key, printable(seen), wanted));
        }
    }
    Ok(())
}

/// How much sharper scores are made where positions are stretched: YaRN's factor of query and key, once for each.
fn sharpness(root: Object<'_>) -> Result<f64> {
    let Some(rope) = from_json::rope_of(root) else { return Ok(1.0) };
    let weight = rope.number_if("mscale_all_dim")?.filter(|&weight| weight != 0.0);
    match (from_json::rope_kind(rope)?, weight) {
        ("default", _) | (_, None) => Ok(1.0),
        (_, Some(weight)) => {
            let factor = rope.number_if("factor")?.unwrap_or(1.0);
            Ok(from_json::yarn_mscale(factor, weight).powi(2))
        }
    }
}
