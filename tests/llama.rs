//! The Llama family against logits of the transformers library on tiny random models.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan::cann::{CannBackend, CannOptions};
use portolan::load::{self, HostWeight};
use portolan::models::{LanguageModel, Llama};
use portolan::nn::{Batch, Precision};
use portolan::sim::{self, SimOptions, SimWorld};
use portolan::{Registry, Stream, StreamOptions};
use std::path::{Path, PathBuf};

const MODELS: [&str; 8] = [
    "llama-mha",
    "llama-gqa",
    "llama-mqa-headdim",
    "llama-rope-linear",
    "llama-rope-yarn",
    "llama-rope-llama3",
    "mistral-window",
    "qwen2-bias",
];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn stream() -> Stream {
    portolan::open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap()
}

/// A simulated Ascend device, and the world that it is in.
fn ascend(soc: &str) -> (Stream, SimWorld) {
    let world = sim::cann(SimOptions { soc: soc.into(), ..SimOptions::default() }).unwrap();
    let backend = CannBackend::new(CannOptions { folder: Some(world.folder().to_owned()) });
    let device = Registry::new().with(backend).open("cann:0").unwrap();
    (device.stream(StreamOptions::default()).unwrap(), world)
}

/// Prompts and their logits `[batch · len, vocab]`, from the golden file.
fn goldens(name: &str) -> Vec<(Vec<Vec<u32>>, Vec<f64>)> {
    let file = load::open(&folder(name).join("golden.safetensors")).unwrap();
    let dense = |name: &str| match file.load(name).unwrap() {
        HostWeight::Dense(tensor) => tensor,
        _ => panic!("{name} is quantized"),
    };
    (0..)
        .take_while(|i| file.contains(&format!("input_ids.{i}")))
        .map(|i| {
            let ids = dense(&format!("input_ids.{i}"));
            let len = ids.spec().shape().last();
            let ids: Vec<u32> = ids.to_f64().into_iter().map(|id| id as u32).collect();
            (ids.chunks(len).map(<[u32]>::to_vec).collect(), dense(&format!("logits.{i}")).to_f64())
        })
        .collect()
}

fn load_model(stream: &Stream, name: &str) -> Llama {
    let source = load::open(&folder(name)).unwrap();
    Llama::load(stream, source.as_ref(), Precision::Exact, &mut |_, _| {}).unwrap()
}

fn logits(stream: &Stream, model: &Llama, sequences: &[Vec<u32>]) -> Vec<f64> {
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let mut cache = model.cache(stream, sequences.len(), 64).unwrap();
    let batch = Batch::new(stream, &sequences, &vec![0; sequences.len()], 64).unwrap();
    let out = model.forward(stream, &batch, &mut cache).unwrap();
    stream.download::<f32>(&out).unwrap().wait().unwrap().into_iter().map(f64::from).collect()
}

/// The largest difference as a fraction of the largest logit.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (difference, largest) = portolan_ops::max_abs_difference(got, want);
    difference / largest
}

#[test]
fn prefill_agrees_with_transformers() {
    for name in MODELS {
        let stream = stream();
        let model = load_model(&stream, name);
        let goldens = goldens(name);
        assert!(goldens.len() > 1, "{name} has {} goldens", goldens.len());
        for (i, (sequences, want)) in goldens.iter().enumerate() {
            let distance = distance(&logits(&stream, &model, sequences), want);
            println!("{name}/{i}: {distance:.2e}");
            assert!(distance <= 1e-4, "{name}, prompt {i}: {distance:e}");
        }
    }
}

#[test]
fn decode_token_by_token_agrees_with_transformers() {
    for name in MODELS {
        decode_agrees(&stream(), name);
    }
}

fn decode_agrees(stream: &Stream, name: &str) {
    let model = load_model(stream, name);
    for (i, (sequences, want)) in goldens(name).iter().enumerate() {
        let (batch_size, len) = (sequences.len(), sequences[0].len());
        let vocab = want.len() / (batch_size * len);
        let mut cache = model.cache(stream, batch_size, 64).unwrap();
        let mut got = vec![0.0; want.len()];
        for t in 0..len {
            let tokens: Vec<&[u32]> = sequences.iter().map(|s| &s[t..=t]).collect();
            let batch = Batch::new(stream, &tokens, &vec![t; batch_size], 64).unwrap();
            let out = model.forward(stream, &batch, &mut cache).unwrap();
            let row = stream.download::<f32>(&out).unwrap().wait().unwrap();
            for (b, values) in row.chunks(vocab).enumerate() {
                let at = (b * len + t) * vocab;
                got[at..at + vocab].iter_mut().zip(values).for_each(|(g, v)| *g = f64::from(*v));
            }
        }
        let distance = distance(&got, want);
        assert!(distance <= 1e-4, "{name}, prompt {i}: {distance:e}");
    }
}

#[test]
fn simulated_ascend_agrees_with_transformers() {
    for soc in ["A2", "A3", "950"] {
        for name in MODELS {
            let (stream, world) = ascend(soc);
            let model = load_model(&stream, name);
            for (i, (sequences, want)) in goldens(name).iter().enumerate() {
                let distance = distance(&logits(&stream, &model, sequences), want);
                assert!(distance <= 1e-4, "{name} on {soc}, prompt {i}: {distance:e}");
            }
            decode_agrees(&stream, name);
            stream.synchronize().unwrap();
            drop((model, stream));
            let report = world.report().unwrap();
            assert!(report.is_clean(), "{name} on {soc}: {report}");
        }
    }
}

#[test]
fn a_perturbed_weight_is_noticed() {
    // The same folder with one weight of the second layer moved by a hundredth.
    let name = "llama-gqa";
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let mut moved = 0;
    for entry in std::fs::read_dir(copy.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "safetensors") || path.ends_with("golden.safetensors") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let json: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
        if let Some(tensor) = json.get("model.layers.1.self_attn.v_proj.weight") {
            let start = 8 + header + tensor["data_offsets"][0].as_u64().unwrap() as usize;
            for at in (start..start + 64 * 4).step_by(4) {
                let value = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
                bytes[at..at + 4].copy_from_slice(&(value + 1e-2).to_le_bytes());
            }
            std::fs::write(&path, bytes).unwrap();
            moved += 1;
        }
    }
    assert_eq!(moved, 1);
    let stream = stream();
    let source = load::open(copy.path()).unwrap();
    let model = Llama::load(&stream, source.as_ref(), Precision::Exact, &mut |_, _| {}).unwrap();
    let (sequences, want) = &goldens(name)[0];
    let distance = distance(&logits(&stream, &model, sequences), want);
    assert!(distance > 1e-4, "a perturbed weight went unnoticed: {distance:e}");
}
