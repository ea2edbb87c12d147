//! The Llama family against logits of the transformers library on tiny random models.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan::load::{self, HostWeight};
use portolan::models::{LanguageModel, Llama};
use portolan::nn::{Batch, Precision};
use portolan::sim::PlannedFault;
use portolan::{Device, Error, ErrorKind, Fallback, Stream, StreamOptions};
use rig::{all_cases, ascend};
use std::collections::BTreeMap;
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

/// Three models on A3; with `PORTOLAN_ALL_CASES=1`, all on every product that multiplies in f32.
#[test]
fn simulated_ascend_agrees_with_transformers() {
    let few = ["llama-gqa", "mistral-window", "qwen2-bias"];
    let (socs, names) =
        if all_cases() { (&["A2", "A3", "950"][..], &MODELS[..]) } else { (&["A3"][..], &few[..]) };
    for soc in socs {
        for name in names {
            let (stream, world) = ascend(soc, Fallback::Allow);
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

/// What stays behind because the driver would not take it back, by the name that its report uses.
fn kept_by_the_driver(call: &str) -> Option<&'static str> {
    match call {
        "aclDestroyTensor" => Some("aclTensor"),
        "aclDestroyScalar" => Some("aclScalar"),
        "aclDestroyIntArray" => Some("aclIntArray"),
        // The second phase uses its executor up, and nothing else may release one that is not repeatable, as attention's
        // is not.
        name if name.starts_with("aclnnFused") && !name.ends_with("GetWorkspaceSize") => {
            Some("aclOpExecutor")
        }
        "aclDestroyAclOpExecutor" => Some("aclOpExecutor"),
        _ => None,
    }
}

/// A conversation of which all but the last token was run, on a stream of its own.
struct Conversation<'a> {
    stream: Stream,
    model: &'a Llama,
    cache: portolan::nn::Cache,
    seen: usize,
}

impl<'a> Conversation<'a> {
    fn begin(device: &Device, model: &'a Llama) -> Self {
        // What hangs is a typed error too, and none that is expected here.
        let options =
            StreamOptions { timeout: std::time::Duration::from_secs(60), ..StreamOptions::default() };
        let stream = device.stream(options).unwrap();
        let cache = model.cache(&stream, 1, 64).unwrap();
        let mut conversation = Self { stream, model, cache, seen: 0 };
        conversation.run(&[3, 5, 7]).unwrap();
        conversation
    }

    fn run(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Error> {
        let batch = Batch::new(&self.stream, &[tokens], &[self.seen], 64)?;
        let logits = self.model.forward(&self.stream, &batch, &mut self.cache)?;
        self.seen += tokens.len();
        Ok(self.stream.download::<f32>(&logits)?.wait()?)
    }
}

/// Every driver call of one step of decoding fails in turn: by itself, and with all calls after it. The ordinary test
/// takes a few calls all over the step; `PORTOLAN_ALL_CASES=1` every one.
#[test]
fn whichever_call_of_a_decode_step_fails_the_error_is_typed_nothing_is_left_and_a_new_stream_works() {
    expect_every_call_to_fail_well(false, if all_cases() { 1 } else { 61 });
    expect_every_call_to_fail_well(true, if all_cases() { 1 } else { 311 });
}

fn expect_every_call_to_fail_well(lost: bool, every: usize) {
    let (loader, world) = ascend("A3", Fallback::Allow);
    let (model, device) = (load_model(&loader, "llama-gqa"), loader.device());
    loader.synchronize().unwrap();
    drop(loader);
    // Calls since the last time that this was asked.
    let mut known = 0;
    let mut news = || {
        let calls = world.calls(known).unwrap();
        known = calls.last().map_or(known, |call| call.number);
        calls
    };
    // Once for what is made on first use, once to count.
    let mut step = || {
        let mut conversation = Conversation::begin(&device, &model);
        news();
        (conversation.run(&[9]).unwrap(), news().len() as u64)
    };
    let (first, (want, count)) = (step().0, step());
    assert_eq!(first, want);
    assert!(count > 100, "{count} calls");
    let descriptors = || {
        let report = world.report().unwrap();
        let lines = report.lines().iter().filter_map(|line| line.split_once(' '));
        let counts = lines.filter(|(_, name)| name.starts_with("acl"));
        counts.map(|(count, name)| (name.to_owned(), count.parse().unwrap())).collect::<BTreeMap<_, u64>>()
    };
    let (mut failed, mut harmless, mut kept) = (0, 0, BTreeMap::new());
    for at in (1..=count).step_by(every) {
        // It is also the new stream that works after the fault before.
        let mut conversation = Conversation::begin(&device, &model);
        conversation.stream.synchronize().unwrap();
        news();
        let fault = match lost {
            false => PlannedFault::Call { call: "*".into(), at, code: 500000 },
            true => PlannedFault::Lost { at, code: 507899 },
        };
        world.plan(&[fault]).unwrap();
        let outcome = conversation.run(&[9]);
        world.plan(&[]).unwrap();
        let calls = news();
        let refused = calls.iter().find(|call| call.message.starts_with("planned"));
        let name = refused.map_or("none", |call| call.name.as_str());
        match outcome {
            Ok(logits) => {
                harmless += 1;
                assert_eq!(logits, want, "call {at}, {name}: a wrong answer without an error");
            }
            Err(Error::Op(error)) => {
                failed += 1;
                // A descriptor that is not made comes without a code.
                let no_code = name.starts_with("aclCreate") && error.kind() == ErrorKind::Internal;
                assert!(no_code || error.kind() == ErrorKind::DeviceLost, "call {at}, {name}: {error}");
            }
            Err(error) => panic!("call {at}, {name}: {error}"),
        }
        if !lost {
            // What is in flight keeps its stream.
            let _ = conversation.stream.synchronize();
        }
        drop(conversation);
        if !lost {
            if let Some(what) = kept_by_the_driver(name) {
                *kept.entry(what.to_owned()).or_insert(0) += 1;
            }
            // The device forgets the stream, and with it the executors, when it is asked for something.
            drop(device.stream(StreamOptions::default()).unwrap());
            assert_eq!(descriptors(), kept, "call {at}, {name}");
        }
    }
    println!("lost: {lost}; {count} calls in a step, {failed} failed, {harmless} did no harm, kept {kept:?}");
    assert!(failed > harmless);
    assert_eq!(Conversation::begin(&device, &model).run(&[9]).unwrap(), want);
    drop((model, device));
    // Of a device that was lost nothing can be given back.
    let lines: Vec<String> = kept.iter().map(|(what, count)| format!("{count} {what}")).collect();
    let left = world.report().unwrap();
    assert!(lost || left.lines() == lines, "{left}");
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
