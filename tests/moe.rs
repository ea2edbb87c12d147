//! Mixtures of experts against logits of the transformers library on tiny random models (`tests/golden/moe.py`).
#![allow(clippy::unwrap_used, missing_docs)]

use portolan::generate::GenerateOptions;
use portolan::load::{self, HostWeight};
use portolan::models::{self, LanguageModel};
use portolan::nn::{Batch, Precision};
use portolan::{Stream, StreamOptions, TextModel};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

const MODELS: [&str; 4] = ["mixtral", "mixtral-window", "qwen2-moe", "qwen3-moe"];
/// Positions of every cache here.
const LEN: usize = 64;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn stream() -> Stream {
    portolan::open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap()
}

fn load_model(stream: &Stream, folder: &Path) -> Result<Box<dyn LanguageModel>, portolan::Error> {
    let source = load::open(folder)?;
    models::load(stream, source.as_ref(), Precision::Exact, &mut |_, _| {})
}

/// A tensor of a model's golden file: its last extent and its elements.
fn golden(name: &str, tensor: &str) -> Option<(usize, Vec<f64>)> {
    let file = load::open(&folder(name).join("golden.safetensors")).unwrap();
    match file.load(tensor).ok()? {
        HostWeight::Dense(tensor) => Some((tensor.spec().shape().last(), tensor.to_f64())),
        _ => panic!("{tensor} is quantized"),
    }
}

/// Prompts and their logits `[batch · len, vocab]`.
fn goldens(name: &str) -> Vec<(Vec<Vec<u32>>, Vec<f64>)> {
    let prompt = |i: usize| {
        let (len, ids) = golden(name, &format!("input_ids.{i}"))?;
        let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
        let logits = golden(name, &format!("logits.{i}")).unwrap().1;
        Some((ids.chunks(len).map(<[u32]>::to_vec).collect(), logits))
    };
    let all: Vec<_> = (0..).map_while(prompt).collect();
    assert!(all.len() > 1, "{name} has {} goldens", all.len());
    all
}

/// Logits of every token, the sequences' tokens run `step` at a time.
fn logits(stream: &Stream, model: &dyn LanguageModel, sequences: &[Vec<u32>], step: usize) -> Vec<f64> {
    let (count, len, vocab) = (sequences.len(), sequences[0].len(), model.info().vocab);
    let mut cache = model.cache(stream, count, LEN).unwrap();
    let mut all = vec![f64::NAN; count * len * vocab];
    for start in (0..len).step_by(step) {
        let end = len.min(start + step);
        let tokens: Vec<&[u32]> = sequences.iter().map(|s| &s[start..end]).collect();
        let batch = Batch::new(stream, &tokens, &vec![start; count], LEN).unwrap();
        let out = model.forward(stream, &batch, &mut cache).unwrap();
        let rows = stream.download::<f32>(&out).unwrap().wait().unwrap();
        assert_eq!(rows.len(), count * (end - start) * vocab);
        for (i, row) in rows.chunks(vocab).enumerate() {
            let at = (i / (end - start) * len + start + i % (end - start)) * vocab;
            all[at..at + vocab].iter_mut().zip(row).for_each(|(to, x)| *to = f64::from(*x));
        }
    }
    all
}

/// The largest difference as a fraction of the largest logit.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let (difference, largest) = portolan_ops::max_abs_difference(got, want);
    difference / largest
}

#[test]
fn prefill_and_decode_token_by_token_agree_with_transformers() {
    let stream = stream();
    for name in MODELS {
        let model = load_model(&stream, &folder(name)).unwrap();
        for (i, (sequences, want)) in goldens(name).iter().enumerate() {
            let prefill = logits(&stream, model.as_ref(), sequences, LEN);
            let decode = logits(&stream, model.as_ref(), sequences, 1);
            for (how, got) in [("prefill", &prefill), ("decode", &decode)] {
                let distance = distance(got, want);
                println!("{name}/{i} {how}: {distance:.2e}");
                assert!(distance <= 1e-4, "{name}, prompt {i}, {how}: {distance:e}");
            }
            let distance = distance(&decode, &prefill);
            assert!(distance <= 1e-4, "{name}, prompt {i}, decode against prefill: {distance:e}");
        }
    }
}

#[test]
fn a_text_model_writes_what_transformers_writes() {
    let stream = stream();
    for name in MODELS {
        let copy = copied(name);
        std::fs::copy(folder("tiny-tokenizer.json"), copy.path().join("tokenizer.json")).unwrap();
        let model = TextModel::open(&stream, copy.path(), Precision::Exact, &mut |_, _| {}).unwrap();
        let prompt = &goldens(name)[1].0[0];
        let want: Vec<u32> = golden(name, "greedy").unwrap().1.into_iter().map(|id| id as u32).collect();
        let mut session = model.session(LEN).unwrap();
        let options =
            GenerateOptions { max_tokens: want.len(), temperature: 0.0, ..GenerateOptions::default() };
        let mut text = String::new();
        let written = model.write(&mut session, prompt, &options, &mut |part| {
            text.push_str(part);
            ControlFlow::Continue(())
        });
        assert_eq!(written.unwrap().tokens, want, "{name}");
        assert!(!text.is_empty());
    }
}

/// A copy of a model's folder.
fn copied(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// A copy of a model's folder in which `change` was applied to every value of a tensor.
fn changed(name: &str, tensor: &str, change: impl Fn(f32) -> f32) -> tempfile::TempDir {
    let copy = copied(name);
    let mut found = false;
    for entry in std::fs::read_dir(copy.path()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let file_name = path.file_name().unwrap().to_str().unwrap();
        if file_name.starts_with("model") && file_name.ends_with(".safetensors") {
            let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: serde_json::Value = serde_json::from_slice(&bytes[8..data]).unwrap();
            if let Some(entry) = header.get(tensor) {
                let offset = |i: usize| data + entry["data_offsets"][i].as_u64().unwrap() as usize;
                for at in (offset(0)..offset(1)).step_by(4) {
                    let value = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                    bytes[at..at + 4].copy_from_slice(&change(value).to_le_bytes());
                }
                found = true;
            }
        }
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(found, "{name} has no {tensor}");
    copy
}

#[test]
fn a_perturbed_weight_is_noticed() {
    let stream = stream();
    for (name, tensor) in [
        ("mixtral", "model.layers.1.block_sparse_moe.experts.4.w2.weight"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.5.w3.weight"),
        ("mixtral-window", "model.layers.1.block_sparse_moe.gate.weight"),
        ("qwen2-moe", "model.layers.2.mlp.experts.3.gate_proj.weight"),
        ("qwen2-moe", "model.layers.1.mlp.shared_expert.up_proj.weight"),
        ("qwen2-moe", "model.layers.1.mlp.shared_expert_gate.weight"),
        ("qwen2-moe", "model.layers.0.mlp.down_proj.weight"),
        ("qwen3-moe", "model.layers.3.self_attn.q_norm.weight"),
        ("qwen3-moe", "model.layers.2.self_attn.k_norm.weight"),
    ] {
        // Rows of a router are moved against each other, or the choice would stay what it was.
        let copy = changed(name, tensor, |x| x + 0.05 * x.signum());
        let model = load_model(&stream, copy.path()).unwrap();
        let worst = goldens(name)
            .iter()
            .map(|(sequences, want)| distance(&logits(&stream, model.as_ref(), sequences, LEN), want))
            .fold(0.0, f64::max);
        assert!(worst > 1e-4, "{name}: a perturbed {tensor} went unnoticed: {worst:e}");
    }
}

/// A copy of a model's folder with another entry in its configuration.
fn configured(name: &str, key: &str, value: serde_json::Value) -> tempfile::TempDir {
    let copy = copied(name);
    let path = copy.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    copy
}

#[test]
fn weights_and_configurations_that_do_not_fit_are_refused_by_name() {
    use serde_json::json;
    let stream = stream();
    for (name, key, value, says) in [
        ("mixtral", "num_local_experts", json!(5), "is of expert 5, the configuration has 5"),
        ("mixtral", "num_local_experts", json!(7), "gate.weight` is [6, 32]"),
        ("mixtral", "num_local_experts", json!(0), "`experts` is 0"),
        ("mixtral", "num_experts_per_tok", json!(7), "`experts of a token` is 7"),
        ("mixtral", "intermediate_size", json!(25), "the model's configuration makes it [25, 32]"),
        ("mixtral", "mlp_bias", json!(true), "biases of experts"),
        ("mixtral", "architectures", json!(["GPT2LMHeadModel"]), "MixtralForCausalLM"),
        (
            "qwen2-moe",
            "mlp_only_layers",
            json!([]),
            "is of a feed-forward layer that the configuration has not",
        ),
        ("qwen2-moe", "mlp_only_layers", json!([0, 1]), "is of a feed-forward layer"),
        ("qwen2-moe", "mlp_only_layers", json!(0), "a list of layers"),
        ("qwen2-moe", "decoder_sparse_step", json!(0), "`step between layers with experts` is 0"),
        ("qwen2-moe", "shared_expert_intermediate_size", json!(null), "is missing"),
        ("qwen2-moe", "qkv_bias", json!(false), "is a bias, the configuration has none there"),
        ("qwen3-moe", "architectures", json!(["Qwen2MoeForCausalLM"]), "`shared_expert_intermediate_size`"),
        ("qwen3-moe", "num_hidden_layers", json!(3), "is of layer 3, the configuration has 3"),
    ] {
        let copy = configured(name, key, value.clone());
        let error = load_model(&stream, copy.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "{name}, {key} {value}: `{error}` does not say `{says}`");
    }
}

#[cfg(feature = "meta")]
#[test]
fn a_plan_counts_the_experts_that_are_used_and_the_weights_of_all() {
    use portolan::OpKind;
    use portolan::plan::{PlanOptions, plan};
    for name in MODELS {
        let source = load::open(&folder(name)).unwrap();
        let parameters: u64 =
            source.names().iter().map(|tensor| source.shape(tensor).unwrap().numel() as u64).sum();
        let plan = plan(source.as_ref(), &PlanOptions { tokens: 5, ..PlanOptions::default() }).unwrap();
        assert_eq!(plan.weight_bytes as u64, 4 * parameters, "{name}");
    }
    // Two layers of experts of width 24 on a hidden size of 32, two for each of 5 tokens, three matrices each.
    let source = load::open(&folder("mixtral")).unwrap();
    let plan = plan(source.as_ref(), &PlanOptions { tokens: 5, ..PlanOptions::default() }).unwrap();
    let row = plan.operators.iter().find(|row| row.kind == OpKind::ExpertFfn).unwrap();
    let products = 2 * 2 * 5 * 3 * 2 * 24 * 32;
    assert_eq!(row.calls, 2);
    // The unit and the weighted sum cost a little besides.
    assert!((products..products + products / 10).contains(&row.cost.flops), "{:?}", row.cost);
}
