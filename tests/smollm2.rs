//! The real model with its real weights: its logits and greedy text against the transformers library, and the command.
//! Runs where the file is: in `$PORTOLAN_MODEL_DIR` or the cache folder; else it says that it was skipped.
#![allow(clippy::unwrap_used)]

use portolan::fetch::{KNOWN_MODELS, cache_folder};
use portolan::generate::{GenerateOptions, Session};
use portolan::load::{self, HostWeight, WeightSource};
use portolan::models::Llama;
use portolan::nn::{Batch, Precision};
use portolan::{Stream, StreamOptions};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The largest difference accepted, as a fraction of the largest logit.
const LIMIT: f64 = 1e-4;
const PROMPTS: usize = 2;

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

fn load_model(folder: &Path) -> (Stream, Llama) {
    let stream = portolan::open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap();
    let source = load::open(&folder.join(KNOWN_MODELS[0].file)).unwrap();
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
