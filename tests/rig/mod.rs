//! Models against logits of the transformers library on tiny random ones: `tests/golden/*.py` makes a folder of each.
#![allow(dead_code, unreachable_pub)] // Every test crate includes the whole of it and needs a part.

use portolan::cann::{CannBackend, CannOptions};
use portolan::generate::{GenerateOptions, Session};
use portolan::load::{self, HostWeight};
use portolan::models::{self, LanguageModel};
use portolan::nn::{Batch, Precision};
use portolan::sim::{self, SimOptions, SimWorld};
use portolan::{Error, ErrorKind, Fallback, Registry, Stream, StreamOptions, TextModel};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Positions of every cache here.
const LEN: usize = 64;

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

pub fn stream() -> Stream {
    portolan::open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap()
}

/// A stream of a simulated Ascend device, and the world that it is in.
pub fn ascend(soc: &str, fallback: Fallback) -> (Stream, SimWorld) {
    ascend_with(soc, fallback, CannOptions::default())
}

/// As [`ascend`], with other options than the folder.
pub fn ascend_with(soc: &str, fallback: Fallback, options: CannOptions) -> (Stream, SimWorld) {
    let world = sim::cann(SimOptions { soc: soc.into(), ..SimOptions::default() }).unwrap();
    let backend = CannBackend::new(CannOptions { folder: Some(world.folder().to_owned()), ..options });
    let device = Registry::new().with(backend).open("cann:0").unwrap();
    (device.stream(StreamOptions { fallback, ..StreamOptions::default() }).unwrap(), world)
}

/// Whether every case is asked for, and not the few that are run each time.
pub fn all_cases() -> bool {
    std::env::var_os("PORTOLAN_ALL_CASES").is_some()
}

pub fn load_model(stream: &Stream, folder: &Path) -> Result<Box<dyn LanguageModel>, portolan::Error> {
    let source = load::open(folder)?;
    models::load(stream, source.as_ref(), Precision::Exact, &mut |_, _| {})
}

/// A tensor of a model's golden file: its last extent and its elements.
pub fn golden(name: &str, tensor: &str) -> Option<(usize, Vec<f64>)> {
    let file = load::open(&folder(name).join("golden.safetensors")).unwrap();
    match file.load(tensor).ok()? {
        HostWeight::Dense(tensor) => Some((tensor.spec().shape().last(), tensor.to_f64())),
        _ => panic!("{tensor} is quantized"),
    }
}

/// Prompts and their logits `[batch · len, vocab]`.
pub fn goldens(name: &str) -> Vec<(Vec<Vec<u32>>, Vec<f64>)> {
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
pub fn logits(stream: &Stream, model: &dyn LanguageModel, sequences: &[Vec<u32>], step: usize) -> Vec<f64> {
    try_logits(stream, model, sequences, step).unwrap()
}

fn try_logits(
    stream: &Stream,
    model: &dyn LanguageModel,
    sequences: &[Vec<u32>],
    step: usize,
) -> Result<Vec<f64>, Error> {
    let (count, len, vocab) = (sequences.len(), sequences[0].len(), model.info().vocab);
    let mut cache = model.cache(stream, count, LEN)?;
    let mut all = vec![f64::NAN; count * len * vocab];
    for start in (0..len).step_by(step) {
        let end = len.min(start + step);
        let tokens: Vec<&[u32]> = sequences.iter().map(|s| &s[start..end]).collect();
        let batch = Batch::new(stream, &tokens, &vec![start; count], LEN)?;
        let out = model.forward(stream, &batch, &mut cache)?;
        let rows = stream.download::<f32>(&out)?.wait()?;
        assert_eq!(rows.len(), count * (end - start) * vocab);
        for (i, row) in rows.chunks(vocab).enumerate() {
            let at = (i / (end - start) * len + start + i % (end - start)) * vocab;
            all[at..at + vocab].iter_mut().zip(row).for_each(|(to, x)| *to = f64::from(*x));
        }
    }
    Ok(all)
}

/// The largest difference as a fraction of the largest logit.
pub fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let (difference, largest) = portolan_ops::max_abs_difference(got, want);
    difference / largest
}

/// Holds every model's answers against the library's: all tokens at once, some at a time, and one by one.
pub fn expect_prefill_and_decode_to_agree(names: &[&str]) {
    let stream = stream();
    for name in names {
        let model = load_model(&stream, &folder(name)).unwrap();
        for (i, (sequences, want)) in goldens(name).iter().enumerate() {
            let prefill = logits(&stream, model.as_ref(), sequences, LEN);
            let chunks = logits(&stream, model.as_ref(), sequences, 5);
            let decode = logits(&stream, model.as_ref(), sequences, 1);
            for (how, got) in [("prefill", &prefill), ("chunks", &chunks), ("decode", &decode)] {
                let (distance, apart) = (distance(got, want), distance(got, &prefill));
                println!("{name}/{i} {how}: {distance:.2e}");
                assert!(distance <= 1e-4, "{name}, prompt {i}, {how}: {distance:e}");
                assert!(apart <= 1e-4, "{name}, prompt {i}, {how} against prefill: {apart:e}");
            }
        }
    }
}

/// Holds models' answers on simulated Ascend products against the library's: on A3 the `few`, a prompt at once and one by
/// one; with `PORTOLAN_ALL_CASES=1` all, all prompts, on every product that multiplies in f32.
pub fn expect_simulated_ascend_to_agree(few: &[&str], all: &[&str]) {
    let (socs, names, prompts) =
        if all_cases() { (&["A2", "A3", "950"][..], all, usize::MAX) } else { (&["A3"][..], few, 1) };
    for (soc, name) in socs.iter().flat_map(|soc| names.iter().map(move |name| (soc, name))) {
        let (stream, world) = ascend(soc, Fallback::Allow);
        let model = load_model(&stream, &folder(name)).unwrap();
        let goldens = goldens(name);
        for (i, (sequences, want)) in goldens.iter().enumerate().take(prompts) {
            for step in [LEN, 1] {
                let distance = distance(&logits(&stream, model.as_ref(), sequences, step), want);
                println!("{name}/{i} on {soc}, {step} at a time: {distance:.2e}");
                assert!(distance <= 1e-4, "{name} on {soc}, prompt {i}, {step} at a time: {distance:e}");
            }
        }
        // What is claimed to be native is: a stream that denies compositions refuses just those models that need some.
        let composed = stream.report().compositions.len();
        let options = StreamOptions { fallback: Fallback::Deny, ..StreamOptions::default() };
        let strict = stream.device().stream(options).unwrap();
        let denied = try_logits(&strict, model.as_ref(), &goldens[0].0, LEN).map(drop);
        assert!(is_unsupported(&denied) || composed == 0 && denied.is_ok(), "{name} on {soc}: {denied:?}");
        for stream in [&stream, &strict] {
            stream.synchronize().unwrap();
        }
        drop((model, stream, strict));
        let report = world.report().unwrap();
        assert!(report.is_clean(), "{name} on {soc}: {report}");
    }
    // Inference cards multiply in f16 alone, and say so rather than round f32 to it.
    let (stream, _world) = ascend("310P", Fallback::Allow);
    let model = load_model(&stream, &folder(few[0])).unwrap();
    let refused = try_logits(&stream, model.as_ref(), &goldens(few[0])[0].0, LEN).map(drop);
    assert!(is_unsupported(&refused), "{} on 310P: {refused:?}", few[0]);
}

fn is_unsupported(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::Op(error)) if error.kind() == ErrorKind::Unsupported)
}

/// Runs sequences of different lengths in passes of which each has another share of every sequence.
pub fn expect_ragged_passes_to_agree(names: &[&str]) {
    let stream = stream();
    for name in names {
        let model = load_model(&stream, &folder(name)).unwrap();
        let vocab = model.info().vocab;
        // Whole sequences with their answers, row by row.
        let mut texts: Vec<(Vec<u32>, Vec<f64>)> = Vec::new();
        for (sequences, want) in goldens(name) {
            let each = want.len() / sequences.len();
            texts.extend(sequences.into_iter().zip(want.chunks(each).map(<[f64]>::to_vec)));
        }
        assert!(texts.len() == 3 && texts[0].0.len() == 7 && texts[2].0.len() == 24);
        let mut cache = model.cache(&stream, texts.len(), LEN).unwrap();
        let mut seen = vec![0; texts.len()];
        for shares in [[4, 4, 9], [0, 1, 1], [1, 1, 0], [2, 1, 1], [0, 0, 12], [0, 0, 1]] {
            let part = |i: usize| &texts[i].0[seen[i]..seen[i] + shares[i]];
            let tokens: Vec<&[u32]> = (0..texts.len()).map(part).collect();
            let batch = Batch::new(&stream, &tokens, &seen, LEN).unwrap();
            let out = model.forward(&stream, &batch, &mut cache).unwrap();
            let rows = stream.download::<f32>(&out).unwrap().wait().unwrap();
            let mut rows = rows.chunks(vocab);
            for (i, share) in shares.into_iter().enumerate() {
                let got: Vec<f64> = rows.by_ref().take(share).flatten().map(|&x| f64::from(x)).collect();
                let want = &texts[i].1[seen[i] * vocab..(seen[i] + share) * vocab];
                if share > 0 {
                    let distance = distance(&got, want);
                    assert!(distance <= 1e-4, "{name}, sequence {i} from {}: {distance:e}", seen[i]);
                }
                seen[i] += share;
            }
        }
        assert_eq!(seen, [7, 7, 24]);
    }
}

/// Greedy decoding through a tokenizer, as a program does it.
pub fn expect_the_text_that_transformers_writes(names: &[&str]) {
    let stream = stream();
    for name in names {
        let copy = copied(name);
        std::fs::copy(folder("tiny-tokenizer.json"), copy.path().join("tokenizer.json")).unwrap();
        let model = TextModel::open(&stream, copy.path(), Precision::Exact, &mut |_, _| {}).unwrap();
        let prompt = &goldens(name)[1].0[0];
        let want = greedy(name);
        let mut session = model.session(LEN).unwrap();
        let mut text = String::new();
        let written = model.write(&mut session, prompt, &options(want.len()), &mut |part| {
            text.push_str(part);
            ControlFlow::Continue(())
        });
        assert_eq!(written.unwrap().tokens, want, "{name}");
        assert!(!text.is_empty());
    }
}

/// What the library's greedy decoding appends to the first row of prompt 1.
fn greedy(name: &str) -> Vec<u32> {
    golden(name, "greedy").unwrap().1.into_iter().map(|id| id as u32).collect()
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, temperature: 0.0, ..GenerateOptions::default() }
}

/// A conversation that goes on, one that was stopped, one that turns, and one that is repeated: each answer is that of a
/// session which has seen nothing.
pub fn expect_sessions_to_remember_what_was_said(names: &[&str]) {
    let stream = stream();
    for name in names {
        let model = load_model(&stream, &folder(name)).unwrap();
        let (prompt, said) = (goldens(name)[1].0[0].clone(), greedy(name));
        let mut session = Session::new(model.as_ref(), &stream, LEN).unwrap();
        let stopped = GenerateOptions { stop: vec![said[4]], ..options(8) };
        // Up to the first time that the token comes.
        let until = said.iter().position(|&token| token == said[4]).unwrap();
        let first = session.generate(&prompt, &stopped, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(first.tokens, said[..until], "{name}");
        let after = |answer: &[u32], next: &[u32]| [&prompt[..], answer, next].concat();
        let turns = [
            // Behind the token that ended the answer, which has been run: it alone is not run again.
            (after(&said[..=until], &[7, 9]), 2),
            (after(&said[..=until], &[7, 9]), 0),
            (after(&said[..2], &[11]), 0),
            (prompt.clone(), 0),
        ];
        for (turn, (prompt, new_tokens)) in turns.iter().enumerate() {
            let mut fresh = Session::new(model.as_ref(), &stream, LEN).unwrap();
            let options = options(5);
            let want = fresh.generate(prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap();
            let got = session.generate(prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(got.tokens, want.tokens, "{name}, turn {turn}");
            if *new_tokens > 0 {
                assert_eq!(got.timing.prompt_tokens, *new_tokens, "{name}, turn {turn}");
            }
        }
    }
}

/// A copy of a model's folder.
pub fn copied(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

/// A copy of a model's folder in which `change` was applied to every value of a tensor.
pub fn changed(name: &str, tensor: &str, change: impl Fn(f32) -> f32) -> tempfile::TempDir {
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

/// Adds 5 % of 1 to every value of a tensor, away from 0, and expects an answer to differ by it.
pub fn expect_changed_weights_to_be_noticed(weights: &[(&str, &str)]) {
    let stream = stream();
    for (name, tensor) in weights {
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

/// Sets another value in a configuration and expects an answer to differ by it.
pub fn expect_changed_switches_to_be_noticed(switches: &[(&str, &str, Value)]) {
    let stream = stream();
    for (name, key, value) in switches {
        let copy = configured(name, key, value.clone());
        let model = load_model(&stream, copy.path()).unwrap();
        let (sequences, want) = &goldens(name)[1];
        let distance = distance(&logits(&stream, model.as_ref(), sequences, LEN), want);
        assert!(distance > 1e-3, "{name}: {key} = {value} went unnoticed: {distance:e}");
    }
}

/// Runs models with what they keep in f16: answers differ, by roundings to 11 bits.
pub fn expect_half_width_caches_to_answer_alike(names: &[&str]) {
    let stream = stream();
    for name in names {
        let source = load::open(&folder(name)).unwrap();
        let model = models::load(&stream, source.as_ref(), Precision::Fast, &mut |_, _| {}).unwrap();
        let (sequences, want) = &goldens(name)[1];
        for step in [LEN, 5, 1] {
            let distance = distance(&logits(&stream, model.as_ref(), sequences, step), want);
            assert!(distance > 1e-6 && distance < 1e-2, "{name}, {step} at a time: {distance:e}");
        }
    }
}

/// A copy of a model's folder with another entry in its configuration.
pub fn configured(name: &str, key: &str, value: serde_json::Value) -> tempfile::TempDir {
    let copy = copied(name);
    let path = copy.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    std::fs::write(&path, config.to_string()).unwrap();
    copy
}

/// Loads models with another entry in their configurations, and expects errors that say what is wrong.
pub fn expect_refusals(cases: &[(&str, &str, Value, &str)]) {
    let stream = stream();
    for (name, key, value, says) in cases {
        let copy = configured(name, key, value.clone());
        let error = load_model(&stream, copy.path()).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(says), "{name}, {key} {value}: `{error}` does not say `{says}`");
    }
}
