//! Configurations from GGUF metadata and `config.json`: what is read, and what is refused with which words.

use crate::writer::GgufWriter;
use portolan::load::config::LlamaConfig;
use portolan::load::gguf::Gguf;
use portolan::load::{Bytes, LoadError};
use portolan_ops::rope::{RopeScaling, RopeStyle};
use serde_json::{Value, json};
use std::path::Path;

fn json_config(change: impl FnOnce(&mut Value)) -> Result<LlamaConfig, LoadError> {
    let mut json = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "vocab_size": 100,
        "rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 256,
        "bos_token_id": 1, "eos_token_id": [2, 3], "hidden_act": "silu",
    });
    change(&mut json);
    LlamaConfig::from_json(Path::new("config.json"), &json)
}

fn gguf_config(change: impl FnOnce(GgufWriter) -> GgufWriter) -> Result<LlamaConfig, LoadError> {
    let file = GgufWriter::new()
        .text("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .u32("llama.embedding_length", 64)
        .u32("llama.feed_forward_length", 96)
        .u32("llama.attention.head_count", 4)
        .u32("llama.context_length", 256)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let file = change(file).tensor("token_embd.weight", &[64, 2], 1, &[0; 256]);
    LlamaConfig::from_source(&Gguf::parse(Box::new(Bytes::new("f.gguf", file.bytes()))).unwrap())
}

#[test]
fn a_llama_checkpoint_is_split_half_and_a_llama_gguf_interleaved() {
    let c = json_config(|_| ()).unwrap();
    assert_eq!((c.head_dim, c.num_kv_heads, c.rope_style), (16, 2, RopeStyle::SplitHalf));
    assert_eq!((c.bos, c.eos.as_slice(), c.tied, c.qkv_bias), (Some(1), &[2, 3][..], false, false));
    let c = gguf_config(|f| f).unwrap();
    assert_eq!((c.head_dim, c.num_kv_heads, c.rope_style), (16, 4, RopeStyle::Interleaved));
    assert_eq!((c.vocab, c.tied, c.rope_theta, c.rope_scaling), (2, true, 10_000.0, RopeScaling::None));
}

#[test]
fn biases_follow_the_family() {
    let c = json_config(|j| j["architectures"] = json!(["Qwen2ForCausalLM"])).unwrap();
    assert_eq!((c.qkv_bias, c.o_bias), (true, false));
    let c = json_config(|j| j["attention_bias"] = json!(true)).unwrap();
    assert_eq!((c.qkv_bias, c.o_bias), (true, true));
}

#[test]
fn windows_count_only_where_they_are_on() {
    let window = |name: &str| {
        json_config(|j| {
            j["architectures"] = json!([name]);
            j["sliding_window"] = json!(32);
        })
    };
    assert_eq!(window("MistralForCausalLM").unwrap().sliding_window, Some(32));
    assert_eq!(window("Qwen2ForCausalLM").unwrap().sliding_window, None);
    assert!(json_config(|j| j["sliding_window"] = Value::Null).unwrap().sliding_window.is_none());
}

#[test]
fn scalings_are_read_under_their_old_and_new_names() {
    let scaling = |value: Value| json_config(|j| j["rope_scaling"] = value).map(|c| c.rope_scaling);
    assert_eq!(
        scaling(json!({"type": "linear", "factor": 2.0})).unwrap(),
        RopeScaling::Linear { factor: 2.0 }
    );
    let llama3 =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_len: 8192 };
    let text = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    assert_eq!(scaling(text).unwrap(), llama3);
    let c = json_config(|j| {
        j["rope_theta"] = Value::Null;
        j["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 7e3});
    });
    assert_eq!(c.unwrap().rope_theta, 7e3);
    let c = gguf_config(|f| f.text("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0))
        .unwrap();
    assert!(matches!(c.rope_scaling, RopeScaling::Yarn { factor: 4.0, original_len: 256, .. }));
}

#[test]
fn implausible_values_are_refused_by_name() {
    let json_cases: Vec<(&str, Value, &str)> = vec![
        ("architectures", json!(["GPT2LMHeadModel"]), "one of LlamaForCausalLM"),
        ("hidden_size", json!(0), "`hidden size` is 0"),
        ("hidden_size", json!(-1), "key `hidden_size` is -1"),
        ("hidden_size", json!("64"), "key `hidden_size` is \"64\""),
        ("hidden_size", Value::Null, "key `hidden_size` is missing"),
        ("hidden_size", json!(u64::MAX), "a divisor of it"),
        ("num_attention_heads", json!(0), "a divisor of it"),
        ("num_attention_heads", json!(5), "a divisor of it"),
        ("num_key_value_heads", json!(3), "a divisor of the number of heads"),
        ("num_key_value_heads", json!(0), "`key and value heads` is 0"),
        ("num_hidden_layers", json!(1u64 << 40), "`layers` is"),
        ("vocab_size", json!(1u64 << 40), "`vocabulary` is"),
        ("head_dim", json!(15), "`rotated elements` is 15"),
        ("head_dim", json!(1u64 << 63), "`head width` is"),
        ("rms_norm_eps", json!(-1.0), "`norm epsilon` is -1"),
        ("rope_theta", json!(0.5), "`rope base` is 0.5"),
        ("rope_scaling", json!({"rope_type": "longrope"}), "`rope_scaling.rope_type` is longrope"),
        ("rope_scaling", json!({"rope_type": "linear"}), "`rope_scaling.factor` is missing"),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0}), "`rope scaling` is"),
        ("eos_token_id", json!(100), "`eos token` is 100"),
        ("eos_token_id", json!("</s>"), "a token number or a list"),
        ("hidden_act", json!("gelu"), "key `hidden_act` is gelu"),
        ("max_position_embeddings", json!(0), "`context length` is 0"),
    ];
    for (key, value, says) in json_cases {
        let error = json_config(|j| j[key] = value.clone()).map(|_| key).unwrap_err().to_string();
        assert!(error.contains(says), "{key} {value}: `{error}` does not say `{says}`");
    }
    assert!(LlamaConfig::from_json(Path::new("c"), &json!([])).is_err());
    let gguf_cases: Vec<(GgufWriter, &str)> = vec![
        (GgufWriter::new(), "`general.architecture` is missing"),
        (GgufWriter::new().text("general.architecture", "gpt2"), "is string \"gpt2\", wanted llama or qwen2"),
        (GgufWriter::new().text("general.architecture", "llama"), "`llama.embedding_length` is missing"),
    ];
    for (file, says) in gguf_cases {
        let file = Gguf::parse(Box::new(Bytes::new("f", file.bytes()))).unwrap();
        let error = LlamaConfig::from_source(&file).unwrap_err().to_string();
        assert!(error.contains(says), "`{error}` does not say `{says}`");
    }
    let gguf = |change: fn(GgufWriter) -> GgufWriter| gguf_config(change).unwrap_err().to_string();
    assert!(gguf(|f| f.u32("llama.vocab_size", 3)).contains("the rows of `token_embd.weight`"));
    assert!(gguf(|f| f.u32("llama.attention.head_count_kv", 3)).contains("a divisor of the number of heads"));
    assert!(gguf(|f| f.u32("llama.rope.dimension_count", 17)).contains("`rotated elements` is 17"));
    assert!(gguf(|f| f.u32("llama.expert_count", 8)).contains("experts are not read from gguf"));
    assert!(gguf(|f| f.text("llama.rope.scaling.type", "su")).contains("none, linear or yarn"));
    assert!(gguf(|f| f.tensor("rope_freqs.weight", &[8], 0, &[0; 32])).contains("frequency factors"));
}
