//! Reads a Llama-family configuration from GGUF metadata and from which tensors the file holds.
//!
//! Keys carry the architecture's name: `llama.block_count`, `qwen2.block_count`.

use super::LlamaConfig;
use crate::load::error::{LoadError, Result};
use crate::load::gguf::Metadata;
use crate::load::names::GGUF_ARCHITECTURES;
use crate::load::weights::WeightSource;
use portolan_ops::rope::RopeScaling;
use std::path::Path;

pub(super) fn read(metadata: &Metadata, source: &dyn WeightSource) -> Result<LlamaConfig> {
    let path = metadata.path();
    let architecture = metadata.string("general.architecture")?;
    let Some(&(_, rope_style)) = GGUF_ARCHITECTURES.iter().find(|(name, _)| *name == architecture) else {
        let known: Vec<&str> = GGUF_ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        let seen = metadata.get("general.architecture").map(|v| v.describe()).unwrap_or_default();
        return Err(LoadError::key(path, "general.architecture", seen, known.join(" or ")));
    };
    let key = |suffix: &str| format!("{architecture}.{suffix}");
    if let Some(experts) = metadata.optional(&key("expert_count"), Metadata::u32)?.filter(|&n| n != 0) {
        let wanted = "0: experts are not read from gguf; use the safetensors form of this model";
        return Err(LoadError::key(path, key("expert_count"), experts.to_string(), wanted));
    }
    let size = |suffix: &str| metadata.u32(&key(suffix)).map(|v| v as usize);
    let optional_size =
        |suffix: &str| Ok(metadata.optional(&key(suffix), Metadata::u32)?.map(|v| v as usize));

    let hidden = size("embedding_length")?;
    let num_heads = size("attention.head_count")?;
    let head_dim = head_dim(metadata, &key, hidden, num_heads)?;
    let embedding = source.shape("token_embd.weight")?;
    let &[rows, width] = embedding.dims() else {
        return Err(LoadError::tensor(
            path,
            "token_embd.weight",
            format!("is {embedding}, wanted two extents"),
        ));
    };
    if width != hidden {
        let what = format!("has rows of {width}, `{}` says {hidden}", key("embedding_length"));
        return Err(LoadError::tensor(path, "token_embd.weight", what));
    }
    if let Some(vocab) = optional_size("vocab_size")?.filter(|&v| v != rows) {
        let wanted = format!("{rows}, the rows of `token_embd.weight`");
        return Err(LoadError::key(path, key("vocab_size"), vocab.to_string(), wanted));
    }
    let max_context = size("context_length")?;
    let token = |name: &str| metadata.optional(&format!("tokenizer.ggml.{name}"), Metadata::u32);
    let mut eos: Vec<u32> = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        eos.extend(token(name)?.filter(|t| !eos.contains(t)));
    }
    let config = LlamaConfig {
        architecture: architecture.into(),
        hidden,
        layers: size("block_count")?,
        unread_layers: 0,
        num_heads,
        num_kv_heads: optional_size("attention.head_count_kv")?.unwrap_or(num_heads),
        head_dim,
        ffn: size("feed_forward_length")?,
        vocab: rows,
        rms_eps: metadata.f32(&key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: f64::from(metadata.optional(&key("rope.freq_base"), Metadata::f32)?.unwrap_or(10_000.0)),
        rope_scaling: rope_scaling(path, metadata, source, &key, max_context)?,
        rope_style,
        rotary_dim: optional_size("rope.dimension_count")?.unwrap_or(head_dim),
        tied: !source.contains("output.weight"),
        max_context,
        sliding_window: optional_size("attention.sliding_window")?.filter(|&w| w != 0),
        qkv_bias: source.contains("blk.0.attn_q.bias"),
        o_bias: source.contains("blk.0.attn_output.bias"),
        mlp_bias: source.contains("blk.0.ffn_down.bias"),
        qk_norm: false,
        bos: token("bos_token_id")?,
        eos,
    };
    config.check(path)?;
    Ok(config)
}

/// Written out, or the hidden size's share of a head.
fn head_dim(
    metadata: &Metadata,
    key: &dyn Fn(&str) -> String,
    hidden: usize,
    num_heads: usize,
) -> Result<usize> {
    if let Some(written) = metadata.optional(&key("attention.key_length"), Metadata::u32)? {
        let value = metadata.optional(&key("attention.value_length"), Metadata::u32)?.unwrap_or(written);
        if value != written {
            let wanted = format!("{written}, as `{}`", key("attention.key_length"));
            return Err(LoadError::key(
                metadata.path(),
                key("attention.value_length"),
                value.to_string(),
                wanted,
            ));
        }
        return Ok(written as usize);
    }
    if num_heads == 0 || !hidden.is_multiple_of(num_heads) {
        let seen = format!("{num_heads} for a hidden size of {hidden}");
        return Err(LoadError::key(metadata.path(), key("attention.head_count"), seen, "a divisor of it"));
    }
    Ok(hidden / num_heads)
}

fn rope_scaling(
    path: &Path,
    metadata: &Metadata,
    source: &dyn WeightSource,
    key: &dyn Fn(&str) -> String,
    max_context: usize,
) -> Result<RopeScaling> {
    // Frequency factors, one a pair, stand for a scaling that the metadata does not name.
    if source.contains("rope_freqs.weight") {
        return Err(LoadError::tensor(
            path,
            "rope_freqs.weight",
            "holds frequency factors, which are not read from gguf; use the safetensors form of this model",
        ));
    }
    let f32_or = |suffix: &str, default: f32| {
        Ok::<f32, LoadError>(metadata.optional(&key(suffix), Metadata::f32)?.unwrap_or(default))
    };
    let kind = metadata.optional(&key("rope.scaling.type"), Metadata::string)?;
    // Files from before the type was written have only `rope.scale_linear`.
    let factor = match metadata.optional(&key("rope.scaling.factor"), Metadata::f32)? {
        Some(factor) => factor,
        None => f32_or("rope.scale_linear", 1.0)?,
    };
    match kind {
        Some("none") => Ok(RopeScaling::None),
        None | Some("linear") if factor == 1.0 => Ok(RopeScaling::None),
        None | Some("linear") => Ok(RopeScaling::Linear { factor }),
        Some("yarn") => {
            let original = metadata.optional(&key("rope.scaling.original_context_length"), Metadata::u32)?;
            Ok(RopeScaling::Yarn {
                factor,
                original_len: original.unwrap_or(u32::try_from(max_context).unwrap_or(u32::MAX)),
                beta_fast: f32_or("rope.scaling.yarn_beta_fast", 32.0)?,
                beta_slow: f32_or("rope.scaling.yarn_beta_slow", 1.0)?,
                attn_factor: metadata.optional(&key("rope.scaling.attn_factor"), Metadata::f32)?,
            })
        }
        Some(_) => {
            let seen = metadata.get(&key("rope.scaling.type")).map(|v| v.describe()).unwrap_or_default();
            Err(LoadError::key(path, key("rope.scaling.type"), seen, "none, linear or yarn"))
        }
    }
}
