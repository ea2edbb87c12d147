//! The real model with its real weights: its logits and greedy text against the transformers library, what int8
//! activations cost it, and the command.
//! Runs where the file is: in `$PORTOLAN_MODEL_DIR` or the cache folder; else it says that it was skipped.
#![allow(clippy::unwrap_used)]

mod rig;

use portolan::cann::CannOptions;
use portolan::cpu::{CpuBackend, CpuOptions, Isa};
use portolan::fetch::{KNOWN_MODELS, cache_folder};
use portolan::generate::{GenerateOptions, Session};
use portolan::load::names::LLAMA;
use portolan::load::{self, HostWeight, SourceMetadata, WeightSource};
use portolan::models::{LanguageModel, Llama};
use portolan::nn::{Batch, Embedding, Linear, Loader, Precision};
use portolan::tokenizer::Tokenizer;
use portolan::{DType, Fallback, Registry, Shape, Stream, StreamOptions};
use portolan_ops::ActQuant;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The largest difference accepted, as a fraction of the largest logit.
const LIMIT: f64 = 1e-4;
const PROMPTS: usize = 2;
/// What `bench --perplexity` reads.
const TEXT: &str = include_str!("../src/bin/portolan/perplexity.txt");

/// The folder that holds the model.
fn folder() -> Option<PathBuf> {
    let folders = [std::env::var_os("PORTOLAN_MODEL_DIR").map(PathBuf::from), cache_folder(None).ok()];
    let found = folders.into_iter().flatten().find(|folder| folder.join(KNOWN_MODELS[0].file).is_file());
    if found.is_none() {
        // Not by `eprintln!`, which the test runner keeps back.
        let mut terminal = std::io::stderr();
        writeln!(terminal, "SKIPPED: no {}; run `portolan fetch smollm2`", KNOWN_MODELS[0].file).unwrap();
    }
    found
}

fn open(folder: &Path) -> (Stream, Box<dyn WeightSource>) {
    let stream = portolan::open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap();
    (stream, load::open(&folder.join(KNOWN_MODELS[0].file)).unwrap())
}

fn load_model(folder: &Path) -> (Stream, Llama) {
    let (stream, source) = open(folder);
    let model = Llama::load(&stream, source.as_ref(), Precision::Exact, &mut |_, _| {}).unwrap();
    (stream, model)
}

fn golden() -> Box<dyn WeightSource> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2.safetensors");
    load::open(&path).unwrap()
}

fn values(golden: &dyn WeightSource, name: &str) -> Vec<f64> {
    match golden.load(name).unwrap() {
        HostWeight::Dense(tensor) => tensor.to_f64(),
        _ => panic!("{name} is quantized"),
    }
}

fn ids(golden: &dyn WeightSource, name: &str) -> Vec<u32> {
    values(golden, name).into_iter().map(|id| id as u32).collect()
}

#[test]
fn exact_logits_and_greedy_text_agree_with_transformers() {
    let Some(folder) = folder() else { return };
    let golden = golden();
    let (stream, model) = load_model(&folder);
    let vocab = model.config().vocab;
    for i in 0..PROMPTS {
        let prompt = ids(golden.as_ref(), &format!("input_ids.{i}"));
        let mut cache = model.cache(&stream, 1, prompt.len()).unwrap();
        let batch = Batch::new(&stream, &[&prompt], &[0], prompt.len()).unwrap();
        let logits = model.forward(&stream, &batch, &mut cache).unwrap();
        let logits = stream.download::<f32>(&logits).unwrap().wait().unwrap();
        assert_eq!(logits.len(), prompt.len() * vocab);

        let last = values(golden.as_ref(), &format!("last_logits.{i}"));
        let top = values(golden.as_ref(), &format!("top_logits.{i}"));
        let top_ids = ids(golden.as_ref(), &format!("top_ids.{i}"));
        let largest = last.iter().chain(&top).fold(0.0, |max: f64, x| max.max(x.abs()));
        let of_last = logits[(prompt.len() - 1) * vocab..].iter().zip(&last).map(|(got, want)| (*got, *want));
        let per_row = top.len() / prompt.len();
        let of_top = top.iter().zip(&top_ids).enumerate();
        let of_top = of_top.map(|(at, (want, &id))| (logits[at / per_row * vocab + id as usize], *want));
        let (mut worst, mut compared) = (0.0, 0);
        for (got, want) in of_last.chain(of_top) {
            worst = f64::max(worst, (f64::from(got) - want).abs() / largest);
            assert!(got.is_finite());
            compared += 1;
        }
        println!("prompt {i}: {compared} logits, largest relative difference {worst:.2e}");
        assert!(compared > vocab && worst <= LIMIT, "prompt {i}: {worst:e} of the largest logit");

        let greedy = ids(golden.as_ref(), &format!("greedy.{i}"));
        let mut session = Session::new(&model, &stream, prompt.len() + greedy.len()).unwrap();
        let options = GenerateOptions { max_tokens: greedy.len(), ..GenerateOptions::default() };
        let made = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(made.tokens, greedy, "prompt {i}");
    }
}

/// A few tokens on A3; with `PORTOLAN_ALL_CASES=1` more of them, on every product that multiplies in f32.
#[test]
fn simulated_ascend_writes_the_tokens_that_the_cpu_writes() {
    let Some(folder) = folder() else { return };
    let (socs, tokens) = if rig::all_cases() { (&["A2", "A3", "950"][..], 12) } else { (&["A3"][..], 4) };
    let golden = golden();
    let prompt = ids(golden.as_ref(), "input_ids.0");
    // The CPU's own, as `exact_logits_and_greedy_text_agree_with_transformers` holds them.
    let want = ids(golden.as_ref(), "greedy.0");
    let source = load::open(&folder.join(KNOWN_MODELS[0].file)).unwrap();
    for soc in socs {
        let (stream, world) = rig::ascend(soc, Fallback::Allow);
        let model = Llama::load(&stream, source.as_ref(), Precision::Exact, &mut |_, _| {}).unwrap();
        let mut session = Session::new(&model, &stream, prompt.len() + tokens).unwrap();
        let options = GenerateOptions { max_tokens: tokens, ..GenerateOptions::default() };
        let made = session.generate(&prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(made.tokens, want[..tokens], "{soc}");
        stream.synchronize().unwrap();
        drop(session);
        drop((model, stream));
        let report = world.report().unwrap();
        assert!(report.is_clean(), "{soc}: {report}");
    }
}

/// Logits of every token of a prompt, `[tokens, vocab]`.
fn prompt_logits(stream: &Stream, model: &Llama, prompt: &[u32]) -> Vec<f64> {
    let mut cache = model.cache(stream, 1, prompt.len()).unwrap();
    let batch = Batch::new(stream, &[prompt], &[0], prompt.len()).unwrap();
    let logits = model.forward(stream, &batch, &mut cache).unwrap();
    stream.download::<f32>(&logits).unwrap().wait().unwrap().into_iter().map(f64::from).collect()
}

/// Inference cards round factors and results of products to f16, by u = 2⁻¹¹ at most: three independent roundings of u/√3
/// each on average are an error of u in a product. A layer adds to the stream what has gone through four products one
/// behind the other (keys, scores, values, output) and then through two (gate or up, down), so thirty layers put
/// √(30 · 6) · u = 13 u into a vector, relative to its length, and so into the logits. The worst of a quarter of a million
/// is five standard deviations off, and on average (by squares) a logit is a quarter of the largest: 5 · 13 u / 4 = 8e-3.
/// With `PORTOLAN_ALL_CASES=1`.
#[test]
fn an_inference_card_is_as_far_off_as_products_in_f16_are() {
    const LIMIT: f64 = 8e-3;
    if !rig::all_cases() {
        return;
    }
    let Some(folder) = folder() else { return };
    let prompt = ids(golden().as_ref(), "input_ids.0");
    let (cpu, model) = load_model(&folder);
    let want = prompt_logits(&cpu, &model, &prompt);
    let source = load::open(&folder.join(KNOWN_MODELS[0].file)).unwrap();
    let options = CannOptions { half_products: true, ..CannOptions::default() };
    let (stream, world) = rig::ascend_with("310P", Fallback::Allow, options);
    let model = Llama::load(&stream, source.as_ref(), Precision::Exact, &mut |_, _| {}).unwrap();
    let got = prompt_logits(&stream, &model, &prompt);
    let distance = rig::distance(&got, &want);
    println!("310P: {distance:.2e} of the largest logit");
    assert!(distance <= LIMIT, "{distance:e} of the largest logit");
    assert!(distance > 1e-4, "{distance:e} of the largest logit, so nothing was rounded");
    stream.synchronize().unwrap();
    drop((model, stream));
    let report = world.report().unwrap();
    assert!(report.is_clean(), "{report}");
}

/// Natural logarithms of the probabilities of every next token, `[tokens, vocab]`.
fn log_probabilities(
    stream: &Stream,
    source: &dyn WeightSource,
    precision: Precision,
    ids: &[u32],
) -> Vec<Vec<f64>> {
    let model = Llama::load(stream, source, precision, &mut |_, _| {}).unwrap();
    let mut cache = model.cache(stream, 1, ids.len()).unwrap();
    let mut rows = Vec::new();
    for (at, chunk) in ids.chunks(64).enumerate() {
        let batch = Batch::new(stream, &[chunk], &[at * 64], ids.len()).unwrap();
        let logits = model.forward(stream, &batch, &mut cache).unwrap();
        let logits = stream.download::<f32>(&logits).unwrap().wait().unwrap();
        rows.extend(logits.chunks(model.config().vocab).map(|row| {
            let largest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let sum: f64 = row.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
            row.iter().map(|&l| f64::from(l) - largest - sum.ln()).collect::<Vec<f64>>()
        }));
    }
    rows
}

/// Codes turn with the last bit of what they are rounded from, and thirty layers pass that on, so fast logits can be held
/// to the exact ones as a distribution only. An f32 reference in numpy with the same rounding, its activations perturbed
/// by 2^−22, lies 2.5e-3 to 2.7e-3 nats from the exact model on this text; llama.cpp, which rounds activations likewise,
/// 2.7e-3.
#[test]
fn int8_activations_cost_the_real_model_what_rounding_costs() {
    const NATS: f64 = 4e-3;
    let Some(folder) = folder() else { return };
    let (stream, source) = open(&folder);
    let SourceMetadata::Gguf(metadata) = source.metadata() else { panic!("not a GGUF file") };
    let ids = Tokenizer::from_metadata(metadata).unwrap().encode(TEXT, true).unwrap();
    let exact = log_probabilities(&stream, source.as_ref(), Precision::Exact, &ids);
    let fast = log_probabilities(&stream, source.as_ref(), Precision::Fast, &ids);
    let divergence =
        |(p, q): (&Vec<f64>, &Vec<f64>)| -> f64 { p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum() };
    let mean = exact.iter().zip(&fast).map(divergence).sum::<f64>() / ids.len() as f64;
    // Of two distributions so close, log-probabilities of a token drawn differ with a variance of twice the divergence.
    let drawn = (ids.len() - 1) as f64;
    let change =
        ids.iter().skip(1).zip(exact.iter().zip(&fast)).map(|(&id, (p, q))| p[id as usize] - q[id as usize]);
    let change = change.sum::<f64>() / drawn;
    let spread = (2.0 * mean / drawn).sqrt();
    println!("{} tokens: {mean:.2e} nats, ln perplexity {change:+.2e} (spread {spread:.1e})", ids.len());
    assert!(mean <= NATS, "fast is {mean:e} nats from exact");
    assert!(mean > NATS / 100.0, "fast is {mean:e} nats from exact, so nothing was rounded");
    assert!(change.abs() <= mean + 4.0 * spread, "ln perplexity changed by {change:e}, spread {spread:e}");
}

/// Values of a long-tailed kind: one in a hundred is up to fifty times as large as the others, as the model's own are.
fn activations(rows: usize, k: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut draw = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..rows * k).map(|_| if draw() > 0.98 { 50.0 * draw() } else { draw() }).collect()
}

/// Products of a layer: what stands side by side in one, by canonical name and outputs, and its inputs.
type Product = (&'static [(&'static str, usize)], usize);

const PRODUCTS: [Product; 4] = [
    (&[("layers.{i}.q", 576), ("layers.{i}.k", 192), ("layers.{i}.v", 192)], 576),
    (&[("layers.{i}.o", 576)], 576),
    (&[("layers.{i}.gate", 1536), ("layers.{i}.up", 1536)], 576),
    (&[("layers.{i}.down", 576)], 1536),
];
/// Also the output layer, which the model ties to its embedding.
const OUTPUT: Product = (&[("embedding", 49_152)], 576);

/// What a product with int8 activations should give, and how far off an f32 sum may be.
fn int8_product(source: &dyn WeightSource, layer: usize, (names, k): Product, x: &[f32]) -> Vec<(f64, f64)> {
    let mut seen = Vec::new();
    for group in x.chunks(32) {
        let mut codes = [0i8; 32];
        let scale = f64::from(ActQuant::round(group, &mut codes));
        seen.extend(codes.map(|code| scale * f64::from(code)));
    }
    let file = |name: &str| LLAMA.name(source.naming(), &format!("{name}.weight"), layer).unwrap();
    let weights = names.iter().flat_map(|(name, _)| source.load(&file(name)).unwrap().to_f32());
    let weights: Vec<f64> = weights.map(f64::from).collect();
    // Every block of 32 columns adds a scaled sum and a minimum, two roundings each; that the two may cancel is covered
    // by errors of random signs.
    let steps = (4 * k / 32 + 8) as f64 * DType::F32.unit_roundoff();
    let one = |x: &[f64], w: &[f64]| {
        let (sum, size) =
            x.iter().zip(w).fold((0.0, 0.0), |(sum, size), (x, w)| (sum + x * w, size + (x * w).abs()));
        (sum, steps * size)
    };
    seen.chunks(k).flat_map(|x| weights.chunks(k).map(move |w| one(x, w))).collect()
}

#[test]
fn int8_products_with_the_real_weights_agree_with_f64() {
    const ROWS: usize = 17;
    let Some(folder) = folder() else { return };
    let (_, source) = open(&folder);
    let of_layers = [0, 29].into_iter().flat_map(|layer| PRODUCTS.map(|product| (layer, product)));
    for (layer, product) in of_layers.chain([(0, OUTPUT)]) {
        let (names, k) = product;
        let x = activations(ROWS, k);
        let want = int8_product(source.as_ref(), layer, product, &x);
        let n = want.len() / ROWS;
        for isa in Isa::ALL {
            let Ok(cpu) = CpuBackend::new(CpuOptions { isa: Some(isa), ..CpuOptions::default() }) else {
                continue;
            };
            let stream =
                Registry::new().with(cpu).open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap();
            let mut progress = |_, _| {};
            let mut loader = Loader::new(&stream, source.as_ref(), LLAMA, Precision::Fast, &mut progress);
            let linear = if product == OUTPUT {
                let embedding = Embedding::load(&mut loader, "embedding.weight", n, k).unwrap();
                Linear::tied(&loader, embedding.weight()).unwrap()
            } else {
                Linear::load(&mut loader, names, layer, k, false).unwrap()
            };
            // Tiles of 12, 4 and 1 rows, and a row on its own.
            for rows in [ROWS, 1] {
                let input = stream.upload(&x[..rows * k], &Shape::new(&[rows, k]).unwrap()).unwrap();
                let out = linear.forward(&stream, &input).unwrap();
                let got = stream.download::<f32>(&out).unwrap().wait().unwrap();
                assert_eq!(got.len(), rows * n);
                for (at, (got, (want, accepted))) in got.iter().zip(&want).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    let place = (at / n, at % n);
                    assert!(
                        error <= *accepted,
                        "{isa:?}, {names:?} of {layer}, {rows} rows, {place:?}: {got}, not {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_command_says_paris() {
    let Some(folder) = folder() else { return };
    for precision in ["exact", "fast"] {
        let output = Command::new(env!("CARGO_BIN_EXE_portolan"))
            .args([
                "generate",
                "--model",
                "smollm2",
                "--precision",
                precision,
                "--max-tokens",
                "8",
                "--cache",
            ])
            .arg(&folder)
            .arg("The capital of France is")
            .output()
            .unwrap();
        let (said, told) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{told}");
        assert!(said.contains("Paris"), "{precision}: {said:?}");
        assert!(told.contains("tokens/s"), "{told}");
    }
}

#[test]
fn the_command_holds_a_conversation() {
    let Some(folder) = folder() else { return };
    let mut child = Command::new(env!("CARGO_BIN_EXE_portolan"))
        .args(["chat", "--model", "smollm2", "--precision", "exact", "--max-tokens", "20", "--cache"])
        .arg(&folder)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let script = "What is the capital of France?\nAnd of Italy?\n/exit\n";
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let (said, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches("ended:").count(), 2, "{told}");
    // The second question only makes sense after the first.
    let (first, second) = said.trim().split_once('\n').unwrap();
    assert!(first.contains("Paris") && second.contains("Rome"), "{said:?}");
}
