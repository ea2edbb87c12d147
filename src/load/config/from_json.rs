//! Reads a decoder's configuration from the `config.json` of a transformers checkpoint.
//!
//! What all families here share is read by one function; each architecture's own ways are a row of a table.
//! Entries that change the result and are not understood are refused, never skipped.

use super::fp8::block_scheme;
use super::{Family, LlamaConfig, MAX_LAYERS, MoeConfig};
use crate::load::error::{LoadError, Result, printable};
use crate::load::names::HUGGING_FACE_ROPE;
use portolan_ops::moe::GateScore;
use portolan_ops::rope::RopeScaling;
use serde_json::Value;
use std::path::Path;

/// An architecture's name and how its files differ from Llama's.
#[derive(Clone, Copy)]
struct Architecture {
    name: &'static str,
    family: Family,
    /// The entry that says whether q, k and v have biases, and what it is where it is not written.
    qkv_bias: (&'static str, bool),
    /// Whether the output projection has a bias too when they have.
    o_bias: bool,
    /// Whether a written `sliding_window` counts unless it is switched off.
    window: bool,
    /// Whether heads of q and k have norms.
    qk_norm: bool,
    /// Whether one expert is every token's.
    shared_expert: bool,
    rms_eps: f64,
    rope_theta: f64,
}

const LLAMA: Architecture = Architecture {
    name: "LlamaForCausalLM",
    family: Family::Llama,
    qkv_bias: ("attention_bias", false),
    o_bias: true,
    window: false,
    qk_norm: false,
    shared_expert: false,
    rms_eps: 1e-6,
    rope_theta: 1e4,
};

const ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    Architecture { name: "MistralForCausalLM", window: true, ..LLAMA },
    Architecture { name: "Qwen2ForCausalLM", qkv_bias: ("attention_bias", true), o_bias: false, ..LLAMA },
    Architecture {
        name: "MixtralForCausalLM",
        family: Family::Mixtral,
        window: true,
        rms_eps: 1e-5,
        rope_theta: 1e6,
        ..LLAMA
    },
    Architecture {
        name: "Qwen2MoeForCausalLM",
        family: Family::QwenMoe,
        qkv_bias: ("qkv_bias", true),
        o_bias: false,
        shared_expert: true,
        ..LLAMA
    },
    Architecture { name: "Qwen3MoeForCausalLM", family: Family::QwenMoe, qk_norm: true, ..LLAMA },
    Architecture { name: "DeepseekV3ForCausalLM", family: Family::DeepseekV3, ..LLAMA },
];

/// Architectures that are no decoders like these.
const OTHERS: &[(&str, Family)] =
    &[("MambaForCausalLM", Family::Mamba), ("Mamba2ForCausalLM", Family::Mamba2)];

/// An object of the file, and where it is for messages.
#[derive(Clone, Copy)]
pub(in crate::load) struct Object<'a> {
    path: &'a Path,
    prefix: &'a str,
    value: &'a Value,
}

impl<'a> Object<'a> {
    /// The entry, unless it is missing or null.
    pub(super) fn get(self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn key(self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(super) fn wrong(self, key: &str, seen: &Value, wanted: &str) -> LoadError {
        LoadError::key(self.path, self.key(key), printable(&seen.to_string()), wanted)
    }

    pub(super) fn optional<T>(
        self,
        key: &str,
        wanted: &str,
        pick: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => pick(value).map(Some).ok_or_else(|| self.wrong(key, value, wanted)),
        }
    }

    pub(super) fn size(self, key: &str) -> Result<usize> {
        self.size_if(key)?.ok_or_else(|| LoadError::missing_key(self.path, self.key(key), "a whole number"))
    }

    pub(super) fn size_if(self, key: &str) -> Result<Option<usize>> {
        self.optional(key, "a whole number of at least 0", |v| usize::try_from(v.as_u64()?).ok())
    }

    pub(super) fn number_if(self, key: &str) -> Result<Option<f64>> {
        self.optional(key, "a number", Value::as_f64)
    }

    pub(super) fn bool_or(self, key: &str, default: bool) -> Result<bool> {
        Ok(self.optional(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// The file, for messages.
    pub(super) fn path(self) -> &'a Path {
        self.path
    }

    /// Fails for weights that are stored as codes by a scheme of the file's own.
    pub(super) fn expect_plain_weights(self) -> Result<()> {
        match self.get("quantization_config") {
            Some(seen) => {
                let wanted =
                    "none: quantized safetensors are not read; use the model's f32, f16 or bf16 weights";
                Err(self.wrong("quantization_config", seen, wanted))
            }
            None => Ok(()),
        }
    }

    /// Fails for an activation that is not SiLU, under either of its names.
    pub(super) fn expect_silu(self) -> Result<()> {
        match self.text_if("hidden_act")?.filter(|&act| act != "silu" && act != "swish") {
            Some(act) => Err(LoadError::key(self.path, "hidden_act", printable(act), "silu")),
            None => Ok(()),
        }
    }

    pub(super) fn text_if(self, key: &str) -> Result<Option<&'a str>> {
        self.optional(key, "a text", Value::as_str)
    }
}

/// The whole file.
pub(in crate::load) fn root<'a>(path: &'a Path, json: &'a Value) -> Result<Object<'a>> {
    match json.is_object() {
        true => Ok(Object { path, prefix: "", value: json }),
        false => Err(LoadError::corrupt(path, "the configuration is not a json object")),
    }
}

pub(super) fn family(path: &Path, json: &Value) -> Result<Family> {
    let decoders = ARCHITECTURES.iter().map(|architecture| (architecture.name, architecture.family));
    let known: Vec<_> = decoders.chain(OTHERS.iter().copied()).collect();
    Ok(known[architecture_of(root(path, json)?, known.iter().map(|(name, _)| *name))?].1)
}

/// Which of the known names the file's architecture has.
pub(super) fn architecture_of<'a>(root: Object<'_>, known: impl Iterator<Item = &'a str>) -> Result<usize> {
    let known: Vec<&str> = known.collect();
    let wanted = known.join(", ");
    let Some(seen) = root.get("architectures") else {
        return Err(LoadError::missing_key(root.path, "architectures", wanted));
    };
    let first = seen.as_array().and_then(|a| a.first()).and_then(Value::as_str);
    known
        .iter()
        .position(|name| Some(*name) == first)
        .ok_or_else(|| root.wrong("architectures", seen, &format!("one of {wanted}")))
}

/// A decoder of a family without what that family alone has.
pub(super) fn read(root: Object<'_>, family: Family) -> Result<LlamaConfig> {
    decoder(root, architecture(root, |of| of == family)?)
}

pub(super) fn read_moe(path: &Path, json: &Value) -> Result<MoeConfig> {
    let root = root(path, json)?;
    let architecture = architecture(root, |family| matches!(family, Family::Mixtral | Family::QwenMoe))?;
    let decoder = decoder(root, architecture)?;
    let mixtral = architecture.family == Family::Mixtral;
    let shared = |key: &str| if architecture.shared_expert { root.size(key).map(Some) } else { Ok(None) };
    let dense_layers = root.optional("mlp_only_layers", "a list of layers", |v| {
        v.as_array()?.iter().map(|i| usize::try_from(i.as_u64()?).ok()).collect::<Option<Vec<usize>>>()
    })?;
    let config = MoeConfig {
        experts: match root.size_if("num_local_experts")? {
            Some(experts) => experts,
            None => root.size("num_experts")?,
        },
        top_k: root.size("num_experts_per_tok")?,
        expert_ffn: if mixtral { decoder.ffn } else { root.size("moe_intermediate_size")? },
        shared_ffn: shared("shared_expert_intermediate_size")?,
        shared_router: architecture.shared_expert,
        score: GateScore::Softmax,
        choice_bias: false,
        groups: None,
        renormalize: root.bool_or("norm_topk_prob", mixtral)?,
        scale: 1.0,
        sparse_step: root.size_if("decoder_sparse_step")?.unwrap_or(1),
        dense_layers: dense_layers.unwrap_or_default(),
        decoder,
    };
    config.check(path)?;
    Ok(config)
}

/// What a decoder is made of, whatever its feed-forward layers are.
fn decoder(root: Object<'_>, architecture: Architecture) -> Result<LlamaConfig> {
    let path = root.path;
    root.expect_silu()?;
    block_scheme(root)?;
    let hidden = root.size("hidden_size")?;
    let num_heads = root.size("num_attention_heads")?;
    let max_context = root.size("max_position_embeddings")?;
    let rope = rope_of(root);
    let inner = |key: &str| rope.map_or(Ok(None), |r| r.number_if(key));
    let theta = root.number_if("rope_theta")?.or(inner("rope_theta")?).unwrap_or(architecture.rope_theta);
    let partial = root.number_if("partial_rotary_factor")?.or(inner("partial_rotary_factor")?).unwrap_or(1.0);
    let (head_dim, rotary_dim) = match architecture.family {
        // A part of each head is rotated, the part that all heads share in keys.
        Family::DeepseekV3 => {
            let rotary_dim = root.size("qk_rope_head_dim")?;
            (root.size("qk_nope_head_dim")?.saturating_add(rotary_dim), rotary_dim)
        }
        _ => {
            let head_dim = head_dim(root, hidden, num_heads)?;
            (head_dim, (head_dim as f64 * partial.clamp(0.0, 1.0)) as usize)
        }
    };
    let (bias_key, bias_default) = architecture.qkv_bias;
    let qkv_bias = root.bool_or(bias_key, bias_default)?;
    let config = LlamaConfig {
        architecture: architecture.name.into(),
        hidden,
        layers: root.size("num_hidden_layers")?,
        unread_layers: match architecture.family {
            Family::DeepseekV3 => root.size_if("num_nextn_predict_layers")?.unwrap_or(0).min(MAX_LAYERS),
            _ => 0,
        },
        num_heads,
        num_kv_heads: root.size_if("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        ffn: root.size("intermediate_size")?,
        vocab: root.size("vocab_size")?,
        rms_eps: root.number_if("rms_norm_eps")?.unwrap_or(architecture.rms_eps) as f32,
        rope_theta: theta,
        rope_scaling: rope.map_or(Ok(RopeScaling::None), |r| rope_scaling(r, max_context))?,
        rope_style: HUGGING_FACE_ROPE,
        rotary_dim,
        tied: root.bool_or("tie_word_embeddings", false)?,
        max_context,
        sliding_window: sliding_window(root, architecture)?,
        qkv_bias,
        o_bias: qkv_bias && architecture.o_bias,
        qk_norm: architecture.qk_norm,
        mlp_bias: root.bool_or("mlp_bias", false)?,
        bos: tokens(root, "bos_token_id")?.first().copied(),
        eos: tokens(root, "eos_token_id")?,
    };
    config.check(path)?;
    Ok(config)
}

/// Written out, or the hidden size's share of a head.
fn head_dim(root: Object<'_>, hidden: usize, num_heads: usize) -> Result<usize> {
    match root.size_if("head_dim")? {
        Some(written) => Ok(written),
        None if num_heads != 0 && hidden.is_multiple_of(num_heads) => Ok(hidden / num_heads),
        None => {
            let seen = format!("{num_heads} for a hidden size of {hidden}");
            let wanted = "a divisor of it, or `head_dim`";
            Err(LoadError::key(root.path, "num_attention_heads", seen, wanted))
        }
    }
}

/// What the file says of rotation: newer ones keep everything about it in one object.
pub(super) fn rope_of(root: Object<'_>) -> Option<Object<'_>> {
    let value = root.get("rope_parameters").or_else(|| root.get("rope_scaling"))?;
    Some(Object { path: root.path, prefix: "rope_scaling.", value })
}

/// What the file says of how weights are stored, where they are no plain numbers.
pub(super) fn quantization_of(root: Object<'_>) -> Result<Option<Object<'_>>> {
    root.optional("quantization_config", "an object", |value| {
        value.is_object().then_some(Object { path: root.path, prefix: "quantization_config.", value })
    })
}

/// How positions are stretched.
pub(super) fn rope_kind(rope: Object<'_>) -> Result<&str> {
    match rope.text_if("rope_type")? {
        Some(kind) => Ok(kind),
        None => Ok(rope.text_if("type")?.unwrap_or("default")),
    }
}

/// YaRN's factor for a context that is `factor` times as long (Peng et al. 2023), weighted.
pub(super) fn yarn_mscale(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}

/// The file's architecture, which must be of a family that is `read`.
fn architecture(root: Object<'_>, read: impl Fn(Family) -> bool) -> Result<Architecture> {
    let known: Vec<_> = ARCHITECTURES.iter().filter(|architecture| read(architecture.family)).collect();
    Ok(*known[architecture_of(root, known.iter().map(|architecture| architecture.name))?])
}

/// One token or a list of them.
pub(super) fn tokens(root: Object<'_>, key: &str) -> Result<Vec<u32>> {
    let one = |v: &Value| u32::try_from(v.as_u64()?).ok();
    let read = root.optional(key, "a token number or a list of them", |v| match v.as_array() {
        Some(list) => list.iter().map(one).collect(),
        None => Some(vec![one(v)?]),
    })?;
    Ok(read.unwrap_or_default())
}

fn sliding_window(root: Object<'_>, architecture: Architecture) -> Result<Option<usize>> {
    // Qwen writes a window and switches it off beside it.
    let on = root.bool_or("use_sliding_window", architecture.window)?;
    let window = root.size_if("sliding_window")?;
    if on && architecture.name.starts_with("Qwen") && window.is_some() {
        return Err(LoadError::key(
            root.path,
            "use_sliding_window",
            "true",
            "false: windows on some layers only are not read",
        ));
    }
    Ok(window.filter(|_| on))
}

fn rope_scaling(rope: Object<'_>, max_context: usize) -> Result<RopeScaling> {
    let kind = rope_kind(rope)?;
    let number = |key: &str| Ok::<_, LoadError>(rope.number_if(key)?.map(|x| x as f32));
    let required =
        |key: &str| number(key)?.ok_or_else(|| LoadError::missing_key(rope.path, rope.key(key), "a number"));
    let original = || {
        let written = rope.size_if("original_max_position_embeddings")?;
        Ok::<_, LoadError>(u32::try_from(written.unwrap_or(max_context)).unwrap_or(u32::MAX))
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: required("factor")? }),
        "yarn" => {
            if !rope.bool_or("truncate", true)? {
                return Err(LoadError::key(rope.path, rope.key("truncate"), "false", "true"));
            }
            // A weight of 0 counts as none.
            let weight = |key: &str| Ok::<_, LoadError>(rope.number_if(key)?.filter(|&weight| weight != 0.0));
            let weighted = match (weight("mscale")?, weight("mscale_all_dim")?) {
                (Some(of), Some(by)) => {
                    let factor = rope.number_if("factor")?.unwrap_or(1.0);
                    Some((yarn_mscale(factor, of) / yarn_mscale(factor, by)) as f32)
                }
                _ => None,
            };
            Ok(RopeScaling::Yarn {
                factor: required("factor")?,
                original_len: original()?,
                beta_fast: number("beta_fast")?.unwrap_or(32.0),
                beta_slow: number("beta_slow")?.unwrap_or(1.0),
                attn_factor: number("attention_factor")?.or(weighted),
            })
        }
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_len: original()?,
        }),
        other => Err(LoadError::key(
            rope.path,
            rope.key("rope_type"),
            printable(other),
            "default, linear, yarn or llama3",
        )),
    }
}
