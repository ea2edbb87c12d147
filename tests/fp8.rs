//! Checkpoints of 8-bit floats with a scale for every block: against logits of the transformers library on such checkpoints
//! (`tests/golden/fp8.py`), and against the same numbers as an f32 checkpoint of a model that `tests/deepseek.rs`,
//! `tests/moe.rs` and `tests/llama.rs` hold against that library.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan::load::{self, HostWeight, WeightSource};
use portolan::models;
use portolan::nn::Precision;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::Path;

/// The number that a code of f8e4m3 stands for: a sign, four bits of exponent around 7, three of fraction; no infinities.
fn number(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => fraction / 8.0 * 2f64.powi(-6),
        15 if code & 7 == 7 => f64::NAN,
        _ => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
    };
    if code < 128 { magnitude } else { -magnitude }
}

/// The code whose number is nearest.
fn code(x: f64) -> u8 {
    let finite = (0..=255u8).filter(|&code| !number(code).is_nan());
    finite.min_by(|&a, &b| (number(a) - x).abs().total_cmp(&(number(b) - x).abs())).unwrap()
}

/// A tensor to write.
struct Stored(String, Dtype, Vec<usize>, Vec<u8>);

fn floats(name: &str, dims: &[usize], values: &[f64]) -> Stored {
    let bytes = values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect();
    Stored(name.into(), Dtype::F32, dims.to_vec(), bytes)
}

fn write(folder: &Path, config: &Value, tensors: &[Stored]) {
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let views = tensors.iter().map(|Stored(name, dtype, dims, bytes)| {
        (name.as_str(), TensorView::new(*dtype, dims.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// A golden model with the weights of its projections in f8e4m3, and the numbers they stand for as f32.
struct Twins {
    codes: tempfile::TempDir,
    numbers: tempfile::TempDir,
}

/// What `config.json` says of such weights.
fn quantization(block: [usize; 2]) -> Value {
    json!({"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": block})
}

fn twins(name: &str, block: [usize; 2]) -> Twins {
    let source = load::open(&rig::folder(name)).unwrap();
    let config = std::fs::read(rig::folder(name).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    let twins = Twins { codes: tempfile::tempdir().unwrap(), numbers: tempfile::tempdir().unwrap() };
    let (mut stored, mut plain) = (Vec::new(), Vec::new());
    for tensor in source.names() {
        let HostWeight::Dense(host) = source.load(tensor).unwrap() else { panic!("{tensor} has codes") };
        let (dims, values) = (host.spec().dims().to_vec(), host.to_f64());
        let &[n, k] = dims.as_slice() else {
            stored.push(floats(tensor, &dims, &values));
            plain.push(floats(tensor, &dims, &values));
            continue;
        };
        if !["_proj.weight", "_mqa.weight", "w1.weight", "w2.weight", "w3.weight"]
            .iter()
            .any(|end| tensor.ends_with(end))
        {
            stored.push(floats(tensor, &dims, &values));
            plain.push(floats(tensor, &dims, &values));
            continue;
        }
        let [rows, columns] = [n.div_ceil(block[0]), k.div_ceil(block[1])];
        let of = |at: usize| at / k / block[0] * columns + at % k / block[1];
        let mut scales = vec![0f32; rows * columns];
        for (at, x) in values.iter().enumerate() {
            scales[of(at)] = scales[of(at)].max((x.abs() / 448.0) as f32);
        }
        let codes: Vec<u8> =
            values.iter().enumerate().map(|(at, x)| code(x / f64::from(scales[of(at)]))).collect();
        let numbers: Vec<f64> =
            codes.iter().enumerate().map(|(at, code)| number(*code) * f64::from(scales[of(at)])).collect();
        // Three bits of fraction, or the smallest step.
        for (at, (x, rounded)) in values.iter().zip(&numbers).enumerate() {
            let step = f64::from(scales[of(at)]) * 2f64.powi(-10);
            assert!(
                (x - rounded).abs() <= (x.abs() / 16.0).max(step) * 1.0001,
                "{tensor} {at}: {x}, {rounded}"
            );
        }
        let scales: Vec<f64> = scales.into_iter().map(f64::from).collect();
        stored.push(floats(&format!("{tensor}_scale_inv"), &[rows, columns], &scales));
        stored.push(Stored(tensor.into(), Dtype::F8_E4M3, dims.clone(), codes));
        plain.push(floats(tensor, &dims, &numbers));
    }
    write(twins.numbers.path(), &config, &plain);
    config["quantization_config"] = quantization(block);
    write(twins.codes.path(), &config, &stored);
    twins
}

/// Blocks of which an expert's 8 rows are one and a third.
const UNALIGNED: [usize; 2] = [6, 16];

/// Models, and blocks of which their weights have one, many, and parts.
const MODELS: [(&str, [usize; 2]); 9] = [
    ("deepseek-v3", [8, 16]),
    ("deepseek-v3", [4, 128]),
    // Either half of an expert ends within a block.
    ("deepseek-v3", [128, 128]),
    ("deepseek-v3", UNALIGNED),
    ("qwen3-moe", [3, 12]),
    ("deepseek-v3-plain", [8, 12]),
    ("mixtral", [8, 16]),
    ("qwen3-moe", [2, 10]),
    ("llama-gqa", [128, 128]),
];

/// The library's own reading of codes and scales; and blocks that are cut short, also between the halves of an expert.
const LIBRARY: [&str; 2] = ["deepseek-v3-f8", "deepseek-v3-f8-cut"];

#[test]
fn prefill_and_decode_token_by_token_agree_with_transformers() {
    rig::expect_prefill_and_decode_to_agree(&LIBRARY);
}

fn logits(folder: &Path, prompt: usize, name: &str, step: usize) -> Vec<f64> {
    let stream = rig::stream();
    let model = rig::load_model(&stream, folder).unwrap();
    rig::logits(&stream, model.as_ref(), &rig::goldens(name)[prompt].0, step)
}

#[test]
fn codes_and_scales_answer_as_the_numbers_they_stand_for() {
    for (name, block) in MODELS {
        let twins = twins(name, block);
        for step in [64, 5, 1] {
            let got = logits(twins.codes.path(), 1, name, step);
            let distance = rig::distance(&got, &logits(twins.numbers.path(), 1, name, step));
            assert!(distance <= 1e-5, "{name} in blocks of {block:?}, {step} at a time: {distance:e}");
            // Other numbers than the library's: they are codes indeed.
            let rounding = rig::distance(&got, &rig::goldens(name)[1].1);
            assert!(rounding > 1e-3, "{name} in blocks of {block:?}: {rounding:e}");
        }
    }
}

/// The checkpoint with one scale, by its place, half as large again.
fn with_scale_off(folder: &Path, tensor: &str, place: fn(usize) -> usize) -> tempfile::TempDir {
    let source = load::open(folder).unwrap();
    let config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let copied = source.names().into_iter().map(|name| {
        let (dims, (dtype, bytes)) =
            (source.shape(name).unwrap().dims().to_vec(), raw(source.as_ref(), name));
        if name != tensor {
            return Stored(name.into(), dtype, dims, bytes);
        }
        let scale = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
        let mut scales: Vec<f64> = bytes.chunks(4).map(scale).collect();
        let at = place(scales.len());
        scales[at] *= 1.5;
        floats(name, &dims, &scales)
    });
    let changed = tempfile::tempdir().unwrap();
    write(changed.path(), &config, &copied.collect::<Vec<_>>());
    changed
}

#[test]
fn a_scale_that_is_off_is_noticed() {
    let first: fn(usize) -> usize = |_| 0;
    let last: fn(usize) -> usize = |count| count - 1;
    for name in LIBRARY {
        let scales = "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv";
        let changed = with_scale_off(&rig::folder(name), scales, last);
        let distance = rig::distance(&logits(changed.path(), 1, name, 64), &rig::goldens(name)[1].1);
        assert!(distance > 1e-3, "a wrong {scales} of {name} went unnoticed: {distance:e}");
    }
    let aligned = [
        ("1.self_attn.kv_b_proj", last),
        ("2.self_attn.o_proj", last),
        ("1.mlp.experts.3.down_proj", last),
        ("1.mlp.experts.3.up_proj", last),
        ("0.mlp.gate_proj", last),
    ];
    // Beside the seam between the halves of an expert, and far from it.
    let unaligned = [
        ("1.mlp.experts.3.gate_proj", first),
        ("1.mlp.experts.3.gate_proj", last),
        ("1.mlp.experts.3.up_proj", first),
        ("1.mlp.experts.3.up_proj", last),
        ("1.mlp.experts.3.down_proj", last),
    ];
    for (block, scales) in [([8, 16], &aligned[..]), (UNALIGNED, &unaligned[..])] {
        let twins = twins("deepseek-v3", block);
        let want = logits(twins.codes.path(), 1, "deepseek-v3", 64);
        for (weight, place) in scales {
            let tensor = format!("model.layers.{weight}.weight_scale_inv");
            let changed = with_scale_off(twins.codes.path(), &tensor, *place);
            let distance = rig::distance(&logits(changed.path(), 1, "deepseek-v3", 64), &want);
            assert!(distance > 1e-4, "a wrong {tensor} went unnoticed: {distance:e}");
        }
    }
}

/// Type and bytes of a tensor as the file has them.
fn raw(source: &dyn WeightSource, name: &str) -> (Dtype, Vec<u8>) {
    match source.load(name).unwrap() {
        HostWeight::Quant(quant) => (Dtype::F8_E4M3, quant.codes().bytes().to_vec()),
        HostWeight::Dense(dense) => (Dtype::F32, dense.bytes().to_vec()),
        _ => panic!("{name} is of an unknown form"),
    }
}

#[test]
fn weights_stay_as_small_as_they_are_stored() {
    use portolan::plan::{PlanOptions, plan};
    let twins = twins("deepseek-v3-plain", [8, 12]);
    let bytes = |folder: &Path| {
        let source = load::open(folder).unwrap();
        plan(source.as_ref(), &PlanOptions::default()).unwrap().weight_bytes
    };
    let source = load::open(twins.codes.path()).unwrap();
    let stored: u64 = source.names().iter().map(|name| source.stored_bytes(name).unwrap().unwrap()).sum();
    // Attention takes what raises latent entries apart, by head, and keeps it in f32 without its scales.
    let raised = source.names().into_iter().filter(|name| name.contains("kv_b_proj"));
    let raised = raised.map(|name| match name.ends_with("_scale_inv") {
        true => -(source.stored_bytes(name).unwrap().unwrap() as i64),
        false => 3 * source.stored_bytes(name).unwrap().unwrap() as i64,
    });
    assert_eq!(bytes(twins.codes.path()) as i64, stored as i64 + raised.sum::<i64>());
    // A configuration alone says as much.
    std::fs::remove_file(twins.numbers.path().join("model.safetensors")).unwrap();
    std::fs::copy(twins.codes.path().join("config.json"), twins.numbers.path().join("config.json")).unwrap();
    let described = load::open_specs(twins.numbers.path()).unwrap();
    let described = plan(described.as_ref(), &PlanOptions::default()).unwrap().weight_bytes;
    assert_eq!(described, bytes(twins.codes.path()));
}

#[test]
fn activations_are_not_rounded_under_either_precision() {
    let twins = twins("qwen3-moe", [2, 10]);
    let stream = rig::stream();
    let source = load::open(twins.codes.path()).unwrap();
    let (sequences, _) = &rig::goldens("qwen3-moe")[0];
    let answers = [Precision::Exact, Precision::Fast].map(|precision| {
        let model = models::load(&stream, source.as_ref(), precision, &mut |_, _| {}).unwrap();
        rig::logits(&stream, model.as_ref(), sequences, 64)
    });
    // The cache is of half width, which is 11 bits; int8 activations would be 8.
    let distance = rig::distance(&answers[1], &answers[0]);
    assert!(distance < 2e-3, "{distance:e}");
}

#[test]
fn what_cannot_be_read_of_a_scheme_is_refused_by_name() {
    let twins = twins("deepseek-v3", [8, 16]);
    let stream = rig::stream();
    let path = twins.codes.path().join("config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let with = |key: &str, value: Value| {
        let mut scheme = quantization([8, 16]);
        scheme[key] = value;
        scheme
    };
    for (scheme, says) in [
        (
            with("quant_method", json!("gptq")),
            "`quantization_config.quant_method` is \"gptq\", wanted fp8: other",
        ),
        (with("fmt", json!("e5m2")), "`quantization_config.fmt` is \"e5m2\", wanted e4m3"),
        (with("activation_scheme", json!("static")), "wanted dynamic: stored scales of activations"),
        (with("weight_block_size", json!(null)), "`quantization_config.weight_block_size` is missing"),
        (with("weight_block_size", json!([8, 0])), "`quantization_config.weight_block_size` is [8,0]"),
        (with("weight_block_size", json!([8])), "both at least 1"),
        (json!("fp8"), "`quantization_config` is \"fp8\", wanted an object"),
        // Blocks of other extents than the file's.
        (with("weight_block_size", json!([16, 16])), "and its scales do not fit together"),
    ] {
        let mut config = config.clone();
        config["quantization_config"] = scheme;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = rig::load_model(&stream, twins.codes.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "`{error}` does not say `{says}`");
    }
    // Codes without a word of how to read them.
    let mut config = config.clone();
    config.as_object_mut().unwrap().remove("quantization_config");
    std::fs::write(&path, config.to_string()).unwrap();
    let error = rig::load_model(&stream, twins.codes.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("f8e4m3") && error.contains("quantization_config"), "{error}");
}
