//! Tools that explain, on whole models: shadow runs that find a planted error where it is, and traces that hold what ran.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan::cpu::{CpuBackend, CpuOptions, Executor, Isa};
use portolan::explain::{
    Divergence, FaultPlan, Faulty, SavedCall, ShadowLog, Span, TraceLog, load_call, save_call, write_trace,
};
use portolan::generate::{GenerateOptions, Session};
use portolan::load::{self, WeightSource};
use portolan::models::{LanguageModel, Llama, embedded};
use portolan::nn::{Batch, Precision};
use portolan::{
    Backend, CommConfig, Communicator, HostBuffer, Registry, Stream, StreamOptions, StreamReport, Tensor,
    call,
};
use portolan_ops::{Fill, HostTensor, LinearSpec, TensorSpec, WeightSpec};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

const LAYERS: usize = 5;
const HIDDEN: usize = 48;
const FFN: usize = 80;
const VOCAB: usize = 96;

/// A Llama of five layers with random weights, as a folder.
fn small_llama(folder: &Path) -> Box<dyn WeightSource> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS, "vocab_size": VOCAB,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut weights: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, dims) in [
            ("input_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![48, HIDDEN]),
            ("self_attn.k_proj", vec![24, HIDDEN]),
            ("self_attn.v_proj", vec![24, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, 48]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
        ] {
            weights.push((format!("model.layers.{layer}.{name}.weight"), dims));
        }
    }
    let tensors: Vec<(String, Vec<usize>, HostTensor)> = weights
        .into_iter()
        .enumerate()
        .map(|(seed, (name, dims))| {
            let spec = TensorSpec::of(portolan::DType::F32, &dims).unwrap();
            // Uniform in ± √(3 / k) keeps the size of what it multiplies; norms are near 1.
            let reach = (3.0 / *dims.last().unwrap() as f64).sqrt();
            let fill = if dims.len() == 1 { Fill::Range(0.75, 1.25) } else { Fill::Range(-reach, reach) };
            let values = fill.draw(&spec, seed as u64);
            (name, dims, HostTensor::from_f64(&spec, &values, 0).unwrap())
        })
        .collect();
    let views = tensors.iter().map(|(name, dims, tensor)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, dims.clone(), tensor.bytes());
        (name.clone(), view.unwrap())
    });
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    load::open(folder).unwrap()
}

fn cpu(isa: Option<Isa>, executor: Executor) -> Arc<dyn Backend> {
    CpuBackend::new(CpuOptions { isa, executor, threads: Some(2), ..CpuOptions::default() }).unwrap()
}

fn stream(backend: Arc<dyn Backend>) -> Stream {
    Registry::new().with(backend).open("cpu").unwrap().stream(StreamOptions::default()).unwrap()
}

/// A prompt at once, then two tokens one by one.
fn forward(stream: &Stream, model: &Llama) {
    let mut cache = model.cache(stream, 1, 16).unwrap();
    let prompt: Vec<u32> = (0..7).map(|i| (i * 29 + 5) % VOCAB as u32).collect();
    for (tokens, cached) in [(&prompt[..5], 0), (&prompt[5..6], 5), (&prompt[6..], 6)] {
        let batch = Batch::new(stream, &[tokens], &[cached], 16).unwrap();
        let logits = model.forward(stream, &batch, &mut cache).unwrap();
        stream.download::<f32>(&logits).unwrap().wait().unwrap();
    }
}

/// The model on this processor's widest path, where a plan comes true, against plain code.
fn shadowed(source: &dyn WeightSource, plan: &str) -> (ShadowLog, Faulty) {
    let log = ShadowLog::new(&stream(cpu(Some(Isa::Portable), Executor::Inline)));
    let (backend, faulty) = plan.parse::<FaultPlan>().unwrap().around(cpu(None, Executor::Queued));
    let stream = stream(log.around(backend));
    let model = Llama::load(&stream, source, Precision::Exact, &mut |_, _| {}).unwrap();
    forward(&stream, &model);
    (log, faulty)
}

fn found(source: &dyn WeightSource, plan: &str) -> Arc<Divergence> {
    let (log, faulty) = shadowed(source, plan);
    assert_eq!(faulty.struck().len(), 1, "{plan}: {:?}", faulty.struck());
    let found = log.first().unwrap_or_else(|| panic!("{plan}: not found; {:?}", faulty.struck()));
    let struck = &faulty.struck()[0];
    let place = format!("struck {} at {}, submission {}", found.op, found.path, found.seq);
    assert!(struck.ends_with(&place), "planted: {struck}\nfound: {place}");
    let diverged: u64 = log.agreements().iter().map(|row| row.diverged).sum();
    assert_eq!(diverged, 1, "an error of one operator is no error of those that use its result: {plan}");
    found
}

#[test]
fn an_error_of_a_thousandth_in_layer_3_is_found_exactly_there() {
    let folder = tempfile::tempdir().unwrap();
    let source = small_llama(folder.path());
    for (op, nth, path) in [
        ("linear", 1, "layers.3.attention"),
        ("linear", 2, "layers.3.attention"),
        ("linear", 4, "layers.3.ffn"),
        ("rope", 1, "layers.3.attention"),
        ("kv_cache_write", 2, "layers.3.attention"),
        ("attention", 1, "layers.3.attention"),
        ("add_rms_norm", 1, "layers.3"),
        ("swiglu", 1, "layers.3.ffn"),
        // In the second token by itself.
        ("attention", 3, "layers.3.attention"),
    ] {
        let plan = format!("seed={nth}; wrong(0.001)@{nth}:{op}:layers.3");
        let found = found(source.as_ref(), &plan);
        assert_eq!((found.kind.name(), found.path.as_str()), (op, path), "{found}");
        let error = found.mismatch.got - found.mismatch.want;
        assert!((error - 1e-3).abs() < 1e-4 && found.mismatch.failures == 1, "{found}");
        let report = found.to_string();
        for part in
            [path, &format!("{:e}", found.mismatch.got), "Portable", "allowed", "contract", "submission"]
        {
            assert!(report.contains(part), "no {part} in:\n{report}");
        }
    }
}

#[test]
fn nothing_differs_where_nothing_was_planted() {
    let folder = tempfile::tempdir().unwrap();
    let source = small_llama(folder.path());
    let (log, _) = shadowed(source.as_ref(), "");
    assert!(log.first().is_none(), "{}", log.first().unwrap());
    let rows = log.agreements();
    let row = |op: &str| rows.iter().find(|row| row.op == op).unwrap();
    // Three passes over four products a layer, and the output.
    assert_eq!(row("linear").compared, 3 * (4 * LAYERS as u64 + 1));
    assert_eq!(row("attention").compared, 3 * LAYERS as u64);
    assert!(rows.iter().all(|row| row.skipped == 0 || row.op == "prepack"), "{rows:?}");
}

#[test]
fn a_generated_text_agrees_between_instruction_sets_in_every_precision() {
    let source = embedded().unwrap();
    for precision in [Precision::Exact, Precision::Fast] {
        let log = ShadowLog::new(&stream(cpu(Some(Isa::Portable), Executor::Inline)));
        let stream = stream(log.around(cpu(None, Executor::Queued)));
        let model = Llama::load(&stream, &source, precision, &mut |_, _| {}).unwrap();
        let mut session = Session::new(&model, &stream, 64).unwrap();
        let options = GenerateOptions { max_tokens: 6, temperature: 0.9, ..GenerateOptions::default() };
        session.generate(&[5, 17, 90, 33], &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert!(log.first().is_none(), "{precision:?}: {}", log.first().unwrap());
        // Decode steps are replayed graphs: their operators are compared too.
        let attention = log.agreements().into_iter().find(|row| row.op == "attention").unwrap();
        assert_eq!(attention.compared, 2 * 6, "{precision:?}");
    }
}

#[test]
fn a_saved_call_runs_again_without_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let source = small_llama(folder.path());
    let found = found(source.as_ref(), "seed=3; wrong(0.001)@2:linear:layers.3");
    let file = folder.path().join("call.safetensors");
    save_call(&found, &file).unwrap();
    let saved = load_call(&file).unwrap();
    assert_eq!((saved.op.as_str(), saved.path.as_str()), ("linear", "layers.3.attention"));
    assert_eq!((&saved.contract, &saved.devices), (&found.contract, &found.devices));

    // On the device it was compared with: the same bits.
    let plain = stream(cpu(Some(Isa::Portable), Executor::Inline));
    let again = run_linear(&plain, &saved);
    let want = saved.tensor("out.want").unwrap();
    assert_eq!(again, want.to_f64());
    // On the healthy device: no error of a thousandth.
    let healthy = run_linear(&stream(cpu(None, Executor::Inline)), &saved);
    let got = saved.tensor("out.got").unwrap().to_f64();
    let at = found.mismatch.index;
    assert!((healthy[at] - want.to_f64()[at]).abs() < 1e-5 && (got[at] - healthy[at] - 1e-3).abs() < 1e-5);

    std::fs::write(&file, b"no such file").unwrap();
    assert!(load_call(&file).unwrap_err().to_string().contains("portolan diff --save"));
}

fn run_linear(stream: &Stream, saved: &SavedCall) -> Vec<f64> {
    let up = |name: &str| -> Tensor {
        let host = saved.tensor(name).unwrap();
        let bytes = HostBuffer::from_bytes(host.bytes()).unwrap();
        stream.upload_bytes(host.spec(), bytes, &name.into()).unwrap()
    };
    let weight = stream.prepack(&up("weight").into(), portolan::OpKind::Linear).unwrap();
    let out = saved.operands.iter().find(|operand| operand.name == "out").unwrap();
    let mut out = stream.empty(&out.spec).unwrap();
    stream.run(call::Linear::new(&up("x"), &weight, &mut out).unwrap()).unwrap();
    stream.download::<f32>(&out).unwrap().wait().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn a_layer_over_another_form_of_its_weight_is_otherwise_the_same() {
    let spec = |dims: &[usize]| TensorSpec::of(portolan::DType::F32, dims).unwrap();
    let dense = WeightSpec::dense(&spec(&[4, 8])).unwrap();
    let layer = LinearSpec::new(&spec(&[2, 8]), &dense, &spec(&[2, 4])).unwrap();
    let layer = layer.with_bias(&spec(&[4])).unwrap().with_activation(portolan_ops::kernel::Activation::Silu);
    assert_eq!(layer.with_weight(&dense).unwrap(), layer);
    assert!(layer.with_weight(&WeightSpec::dense(&spec(&[5, 8])).unwrap()).is_err());
}

/// A trace of generated text, as JSON, with the spans it was made of and the stream's own account.
fn traced() -> (Value, Vec<Span>, StreamReport) {
    let source = embedded().unwrap();
    let log = TraceLog::new();
    let stream = stream(log.around(cpu(None, Executor::Queued)));
    let model = Llama::load(&stream, &source, Precision::Fast, &mut |_, _| {}).unwrap();
    let mut session = Session::new(&model, &stream, 64).unwrap();
    let options = GenerateOptions { max_tokens: 5, ..GenerateOptions::default() };
    session.generate(&[5, 17, 90, 33], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    let mut text = Vec::new();
    write_trace(&log, &mut text).unwrap();
    (serde_json::from_slice(&text).unwrap(), log.spans(), stream.report())
}

/// Holds a document to the Trace Event Format, and its slices to what viewers draw: those of a thread contain each other
/// or lie apart. The number of slices.
fn check_format(trace: &Value) -> usize {
    let events = trace["traceEvents"].as_array().unwrap();
    let (mut threads, mut named) = (BTreeMap::<(u64, u64), Vec<(u64, u64)>>::new(), Vec::new());
    for event in events {
        let place = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        assert!(event["args"].is_object(), "{event}");
        match event["ph"].as_str().unwrap() {
            "M" => {
                assert!(
                    ["process_name", "thread_name"].contains(&event["name"].as_str().unwrap()),
                    "{event}"
                );
                assert!(!event["args"]["name"].as_str().unwrap().is_empty(), "{event}");
                named.push(place);
            }
            "X" => {
                assert!(!event["name"].as_str().unwrap().is_empty() && event["cat"].is_string(), "{event}");
                let nanos = |key: &str| {
                    let micros = event[key].as_f64().unwrap();
                    assert!(micros >= 0.0, "{event}");
                    (micros * 1e3).round() as u64
                };
                threads.entry(place).or_default().push((nanos("ts"), nanos("ts") + nanos("dur")));
            }
            other => panic!("ph {other}: {event}"),
        }
    }
    let mut slices = 0;
    for (place, mut thread) in threads {
        assert!(named.contains(&place), "{place:?} has no name");
        slices += thread.len();
        thread.sort_by_key(|&(begin, end)| (begin, std::cmp::Reverse(end)));
        let mut open: Vec<u64> = Vec::new();
        for (begin, end) in thread {
            open.retain(|&outer| outer > begin || outer == begin && end == begin);
            assert!(open.last().is_none_or(|&outer| end <= outer), "slices of {place:?} overlap at {begin}");
            open.push(end);
        }
    }
    slices
}

#[test]
fn a_trace_holds_every_operator_with_its_cost_in_the_form_viewers_read() {
    let (trace, spans, report) = traced();
    assert_eq!(check_format(&trace), spans.len());
    // Against the stream's own account, which counts where operators are submitted.
    let leaves = || spans.iter().filter(|span| span.kind.is_some() && span.composed.is_none());
    let sum = |get: fn(&Span) -> u64| leaves().map(get).sum::<u64>();
    assert_eq!(sum(|span| span.cost.flops), report.composed.flops);
    assert_eq!(sum(|span| span.cost.bytes_read), report.composed.bytes_read);
    assert_eq!(sum(|span| span.cost.bytes_written), report.composed.bytes_written);
    let events = trace["traceEvents"].as_array().unwrap();
    let attention = |layer: usize| {
        let path = format!("layers.{layer}.attention");
        events
            .iter()
            .filter(|e| e["name"] == "attention" && e["args"]["path"] == path.as_str())
            .collect::<Vec<_>>()
    };
    for layer in 0..2 {
        // The prompt, and four tokens more by replaying one graph.
        assert_eq!(attention(layer).len(), 5, "layer {layer}");
    }
    let first = &attention(1)[0]["args"];
    assert_eq!((&first["way"], &first["stream"]), (&"native".into(), &1.into()));
    assert!(first["operands"].as_str().unwrap().contains("q f32[4, 4, 16]"), "{first}");
    assert!(first["flops"].as_u64().unwrap() > 0);
    assert!(events.iter().any(|event| event["name"] == "upload" && event["cat"] == "copy"));
}

#[test]
fn a_trace_of_ranks_says_which_rank_ran_what_and_what_it_sent() {
    let log = TraceLog::new();
    let backend = log.around(cpu(None, Executor::Queued));
    let id = backend.new_id().unwrap();
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let backend = backend.clone();
            scope.spawn(move || {
                let stream = stream(backend);
                let (timeout, determinism) =
                    (std::time::Duration::from_secs(50), portolan::Determinism::RunToRun);
                let config = CommConfig { id, rank, world_size: 2, timeout, determinism };
                let comm = Communicator::join(&stream, &config).unwrap();
                let x = stream.upload(&[1.0f32; 10], &portolan::Shape::new(&[10]).unwrap()).unwrap();
                for _ in 0..2 {
                    stream.run(call::AllReduce::sum(&comm, &x, &mut x.clone()).unwrap()).unwrap();
                }
                stream.synchronize().unwrap();
            });
        }
    });
    let mut text = Vec::new();
    write_trace(&log, &mut text).unwrap();
    let trace: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(check_format(&trace), log.spans().len());
    let mut sums: Vec<[u64; 4]> = trace["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["name"] == "all_reduce" && event["cat"] == "collective")
        .map(|event| {
            ["rank", "sequence", "world_size", "bytes_comm"].map(|key| event["args"][key].as_u64().unwrap())
        })
        .collect();
    sums.sort();
    // Each of two sends the half it does not sum, and its half of the sum.
    assert_eq!(sums, [[0, 0, 2, 40], [0, 1, 2, 40], [1, 0, 2, 40], [1, 1, 2, 40]]);
}

#[test]
fn the_check_of_the_format_notices_what_viewers_would_stumble_over() {
    let slice = |ts: f64, dur: f64| json!({ "ph": "X", "name": "a", "cat": "operator", "ts": ts, "dur": dur, "pid": 1, "tid": 1, "args": {} });
    let name =
        |kind: &str| json!({ "ph": "M", "name": kind, "pid": 1, "tid": 1, "args": { "name": "cpu:0" } });
    let check = |slices: Vec<Value>| {
        let events: Vec<Value> =
            [name("process_name"), name("thread_name")].into_iter().chain(slices).collect();
        std::panic::catch_unwind(|| check_format(&json!({ "traceEvents": events }))).ok()
    };
    assert_eq!(check(vec![slice(1.0, 2.0), slice(1.0, 1.0), slice(2.0, 1.0), slice(3.0, 5.5)]), Some(4));
    assert_eq!(check(vec![slice(1.0, 2.0), slice(2.0, 2.0)]), None, "overlap");
    assert_eq!(check(vec![slice(-1.0, 2.0)]), None, "before the beginning");
    let mut wrong = slice(1.0, 2.0);
    wrong["dur"] = Value::Null;
    assert_eq!(check(vec![wrong]), None, "no duration");
    let mut elsewhere = slice(1.0, 2.0);
    elsewhere["tid"] = 2.into();
    assert_eq!(check(vec![elsewhere]), None, "a thread without a name");
}

fn command(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portolan")).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The embedded model as a file, and the folder that keeps it.
fn model() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("embedded.gguf");
    std::fs::write(&path, portolan::models::embedded_file()).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

/// The one line of a command that fails with 1, and its stdout.
fn failure(args: &[&str]) -> (String, String) {
    let output = command(args);
    let message = text(&output.stderr).to_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
    assert!(message.starts_with("error: ") && message.trim_end().lines().count() == 1, "{args:?}: {message}");
    (message, text(&output.stdout).to_owned())
}

#[test]
fn diff_agrees_with_0_and_ends_with_1_at_the_first_operator_that_differs() {
    let (folder, path) = model();
    let args = ["diff", "--model", &path, "--on", "cpu:0", "--against", "cpu:0", "--against-isa", "portable"];
    let output = command(&args);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(table.contains("Portable") && table.contains("calls agree"), "{table}");
    for op in ["linear", "attention", "sample"] {
        let row =
            table.lines().find(|line| line.starts_with(op)).unwrap_or_else(|| panic!("no {op}:\n{table}"));
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert!(cells[1].parse::<u64>().unwrap() > 0 && cells[3] == "0", "{row}");
    }
    let file = folder.path().join("call.safetensors");
    let planted = ["--fault", "wrong(0.01)@1:linear:layers.1", "--save", file.to_str().unwrap()];
    let (message, table) = failure(&[&args[..], &planted].concat());
    assert!(message.contains("linear at layers.1.attention differs"), "{message}");
    assert!(table.contains("first difference: linear at layers.1.attention"), "{table}");
    assert_eq!(load_call(&file).unwrap().op, "linear");
    // A fault that ends the run is that error.
    let (message, _) = failure(&[&args[..], &["--fault", "refused@40"]].concat());
    assert!(message.contains("INJECTED_LAUNCH_FAILURE"), "{message}");
    let (message, _) = failure(&[&args[..], &["--fault", "burn@1"]].concat());
    assert!(message.contains("burn@1") && message.contains("oom@3"), "{message}");
    let (message, _) = failure(&["diff", "--model", &path, "--against", "tpu:0"]);
    assert!(message.contains("registered are"), "{message}");
}

#[test]
fn generate_and_chat_write_a_trace_and_the_same_text_as_without() {
    let (folder, path) = model();
    let file = folder.path().join("trace.json");
    let file = file.to_str().unwrap();
    let args = ["generate", "--model", &path, "--max-tokens", "8", "hello"];
    let (without, with) = (command(&args), command(&[&args[..], &["--trace", file]].concat()));
    assert_eq!(with.status.code(), Some(0), "{}", text(&with.stderr));
    assert_eq!(text(&with.stdout), text(&without.stdout));
    let read = || serde_json::from_slice::<Value>(&std::fs::read(file).unwrap()).unwrap();
    let generated = check_format(&read());
    assert!(generated > 8 * 2 * 10, "{generated}");
    let mut chat = Command::new(env!("CARGO_BIN_EXE_portolan"))
        .args(["chat", "--model", &path, "--max-tokens", "3", "--trace", file])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut chat.stdin.take().unwrap(), b"hello\nagain\n").unwrap();
    assert!(chat.wait().unwrap().success());
    assert!(check_format(&read()) > 2 * 3 * 10);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "only the model and the trace are left");
}

#[cfg(target_os = "linux")]
#[test]
fn a_trace_that_cannot_be_written_is_one_line_and_leaves_the_old_one() {
    let (folder, path) = model();
    let generate = |trace: &str| {
        ["generate", "--model", &path, "--max-tokens", "2", "hello", "--trace", trace].map(str::to_owned)
    };
    let missing = folder.path().join("no/such/trace.json");
    let args = generate(missing.to_str().unwrap());
    let (message, out) = failure(&args.each_ref().map(String::as_str));
    assert!(
        message.contains("trace.json") && message.contains("No such file") && out.is_empty(),
        "{message}"
    );

    let output = command(&generate("/dev/full").each_ref().map(String::as_str));
    let error = text(&output.stderr).lines().last().unwrap_or_default().to_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.starts_with("error: ") && error.contains("/dev/full") && error.contains("No space left"),
        "{error}"
    );

    // A limit on file size stands for the disk that fills while the trace is written.
    let file = folder.path().join("trace.json");
    std::fs::write(&file, "the old one").unwrap();
    let limited = "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", limited, env!("CARGO_BIN_EXE_portolan")])
        .args(generate(file.to_str().unwrap()))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = text(&output.stderr).lines().last().unwrap_or_default().to_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write") && error.contains("trace.json"), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "the old one");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}
