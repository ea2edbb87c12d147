//! The `portolan` command from outside: what it prints, its exit codes, and how it takes bad input and signals.
//! Everything here runs on the embedded model, written to a file; the real model is in `smollm2.rs`.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

const SUBCOMMANDS: [&str; 11] =
    ["devices", "ops", "check", "fetch", "inspect", "generate", "chat", "bench", "plan", "diff", "explain"];

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
    // A backtrace would show in the one line that stderr should hold.
    command.args(args).env("RUST_BACKTRACE", "1").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Stdout of a command that must succeed.
fn succeed(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The message of a command that must fail with exit code 1, which is one line.
fn fail(args: &[&str]) -> String {
    let output = run(args);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
    assert!(message.starts_with("error: ") && message.trim_end().lines().count() == 1, "{args:?}: {message}");
    message
}

/// The embedded model as a file, and the folder that keeps it.
fn model() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("embedded.gguf");
    std::fs::write(&path, portolan::models::embedded_file()).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

fn golden(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).to_str().unwrap().to_owned()
}

/// What stdin made of `lines` answered: stdout and stderr of a chat that must succeed.
fn chat(args: &[&str], lines: &str) -> (String, String) {
    let mut child =
        command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A child that fails early closes the pipe; its own message says more than this write's.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

/// Waits, but not for ever: a hanging command is a failure that says so.
fn exit_code_within(child: &mut Child, limit: Duration) -> Option<i32> {
    let started = Instant::now();
    while started.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    panic!("the command did not end within {limit:?}");
}

fn interrupt(child: &Child) {
    send("-INT", child);
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// A generation that would take minutes, once its first text is there.
fn long_generation(path: &str) -> (Child, ChildStdout) {
    let args = ["generate", "--model", path, "--max-tokens", "60000", "hello"];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 16]).unwrap();
    (child, out)
}

#[test]
fn every_subcommand_has_help_with_its_options() {
    let all = succeed(&["--help"]);
    for subcommand in SUBCOMMANDS {
        assert!(all.contains(subcommand), "{all}");
        let help = succeed(&[subcommand, "--help"]);
        assert!(help.contains("Usage: portolan"), "{help}");
    }
    assert!(succeed(&["generate", "--help"]).contains("The capital of France is"));
    assert!(succeed(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_arguments_end_with_2_and_say_what_was_wrong() {
    for (args, said) in [
        (&[][..], "Usage:"),
        (&["generate"][..], "--model"),
        (&["generate", "--model", "m", "--no-such-flag", "text"][..], "--no-such-flag"),
        (&["generate", "--model", "m", "--precision", "half", "text"][..], "exact"),
        (&["generate", "--model", "m", "--temperature=-1", "text"][..], "temperature"),
        (&["generate", "--model", "m", "--temperature", "-1", "text"][..], "temperature"),
        (&["generate", "--model", "m", "--temperature", "nan", "text"][..], "at least 0"),
        (&["generate", "--model", "m", "--seed", "-1", "text"][..], "seed"),
        (&["generate", "--model", "m", "--max-tokens", "-1", "text"][..], "max-tokens"),
        (&["generate", "--model", "m", "--repetition-penalty", "0", "text"][..], "above 0"),
        (&["generate", "--model", "m", "--top-p", "2", "text"][..], "0 to 1"),
        (&["generate", "--model", "m", "--threads", "0", "text"][..], "threads"),
        (&["plan"][..], "--model"),
        (&["plan", "--model", "m", "--tokens", "0"][..], "tokens"),
        (&["plan", "--model", "m", "--tokens", "many"][..], "tokens"),
        (&["plan", "--model", "m", "--batch", "0"][..], "batch"),
        (&["plan", "--model", "m", "--batch", "9999999"][..], "1048576"),
        (&["plan", "--model", "m", "--cached=-1"][..], "cached"),
        (&["plan", "--model", "m", "--device", "cpu:0"][..], "--device"),
        (&["ops", "cpu:0", "--summary", "--markdown"][..], "--markdown"),
        (&["check", "--device", "meta:0"][..], "keeps no data"),
        (&["sing"][..], "sing"),
    ] {
        let output = run(args);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
        assert!(message.contains(said), "{args:?}: {message}");
    }
}

#[test]
fn devices_lists_the_cpu_and_the_device_that_only_counts() {
    let list = succeed(&["devices"]);
    assert!(list.lines().any(|line| line.starts_with("meta:0") && line.contains("keeps no data")), "{list}");
    assert!(list.lines().any(|line| line.starts_with("cpu:0") && line.contains("GiB")), "{list}");
}

#[test]
fn explain_says_what_a_code_means_and_what_to_do() {
    let entry = succeed(&["explain", "507015"]);
    assert!(entry.starts_with("CANN 507015 RT_AICORE_EXCEPTION\ncause:  "), "{entry}");
    assert!(entry.contains("\nnext:   "), "{entry}");
    assert!(fail(&["explain", "1"]).contains("1 is none of"));
}

#[test]
fn check_finds_every_configuration_right_and_identical() {
    let table = succeed(&["check"]);
    for executor in ["inline", "queued", "chaotic"] {
        for threads in ["1", "2", "3", "8"] {
            for precision in ["exact", "int8"] {
                let wanted = ["cpu:0", executor, threads, precision];
                let row = table
                    .lines()
                    .find(|line| line.split_whitespace().take(4).eq(wanted))
                    .unwrap_or_else(|| panic!("no row for {wanted:?}:\n{table}"));
                assert!(row.ends_with("none"), "{row}");
            }
        }
    }
    assert!(fail(&["check", "--device", "tpu:0"]).contains("registered are"));
}

#[test]
fn ops_counts_what_a_device_runs_by_class_of_operators() {
    // Class, operators, native, composed, refused.
    let rows = |device: &str| -> Vec<(String, Vec<usize>)> {
        let table = succeed(&["ops", device, "--summary"]);
        assert!(table.starts_with(&format!("{device}\nclass")), "{table}");
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            let class = words.next()?.to_owned();
            let counts = words.map(|word| word.parse().ok()).collect::<Option<Vec<usize>>>()?;
            (counts.len() == 4).then_some((class, counts))
        };
        table.lines().filter_map(row).collect()
    };
    let (cpu, meta) = (rows("cpu:0"), rows("meta:0"));
    for (rows, device) in [(&cpu, "cpu:0"), (&meta, "meta:0")] {
        let (all, classes) = rows.split_last().unwrap();
        assert!(classes.iter().any(|(class, _)| class == "kernel") && all.0 == "all", "{rows:?}");
        for column in 0..4 {
            assert_eq!(classes.iter().map(|(_, row)| row[column]).sum::<usize>(), all.1[column], "{device}");
        }
        // The long table has a line for each operator.
        let table = succeed(&["ops", device]);
        assert_eq!(table.lines().count(), all.1[0] + 3, "{table}");
    }
    // The cases are the same; the device that only counts takes them all as they are.
    for ((class, on_cpu), (_, on_meta)) in cpu.iter().zip(&meta) {
        assert_eq!(on_cpu[1..].iter().sum::<usize>(), on_meta[1], "{class}");
        assert_eq!(on_meta[2..], [0, 0], "{class}");
    }
    assert!(fail(&["ops", "tpu:0"]).contains("registered are: cpu, meta"));
    assert!(fail(&["ops", "cpu:9", "--summary"]).contains("cpu:9 does not exist"));
}

#[test]
fn plan_shows_the_cost_by_operator_and_in_all_without_weights() {
    let (folder, path) = model();
    let shown = succeed(&["plan", "--model", &path, "--tokens", "16", "--batch", "2"]);
    for part in [
        "2 x 16 tokens behind 0 cached",
        "linear",
        "attention",
        "total",
        "kv cache",
        "experts as evenly used",
    ] {
        assert!(shown.contains(part), "no {part}:\n{shown}");
    }
    let json = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str(&succeed(&[&["plan", "--json", "--model"], args].concat())).unwrap()
    };
    let fused = json(&[&path, "--tokens", "16", "--batch", "2"]);
    let composed = json(&[&path, "--tokens", "16", "--batch", "2", "--composed"]);
    for plan in [&fused, &composed] {
        for column in ["calls", "flops", "bytes_read", "bytes_written", "bytes_comm"] {
            let rows = plan["operators"].as_array().unwrap();
            let sum: u64 = rows.iter().map(|row| row[column].as_u64().unwrap()).sum();
            assert_eq!(plan["total"][column].as_u64(), Some(sum), "{column}");
        }
        // Two layers of 2 key heads of 16, keys and values in two bytes, 16 tokens of 2 sequences.
        assert_eq!(plan["kv_bytes"], 2 * 2 * 2 * 16 * 2 * 16 * 2);
        assert!(plan["peak_bytes"].as_u64() > plan["weight_bytes"].as_u64());
    }
    assert_eq!((&fused["counted"], &composed["counted"]), (&"fused".into(), &"composed".into()));
    assert_eq!(fused["total"]["calls"], composed["total"]["calls"]);
    assert!(composed["total"]["bytes_read"].as_u64() > fused["total"]["bytes_read"].as_u64());

    // A configuration alone says the same as the weights beside it.
    let config = folder.path().join("config.json");
    std::fs::copy(PathBuf::from(golden("llama-gqa")).join("config.json"), &config).unwrap();
    let whole = json(&[&golden("llama-gqa"), "--tokens", "5"]);
    for described in [config.as_path(), folder.path()] {
        let described = json(&[described.to_str().unwrap(), "--tokens", "5"]);
        for part in ["operators", "total", "weight_bytes", "kv_bytes", "peak_bytes"] {
            assert_eq!(described[part], whole[part], "{part}");
        }
    }
    let none = tempfile::tempdir().unwrap();
    assert!(fail(&["plan", "--model", none.path().to_str().unwrap()]).contains("config.json"));
    assert!(fail(&["plan", "--model", "/no/such/file"]).contains("no file or folder"));
    let message = fail(&["plan", "--model", &path, "--tokens", "65000", "--cached", "1000"]);
    assert!(message.contains("expected 1 to 65536"), "{message}");
    std::fs::write(&config, "{\"architectures\": [\"MysteryForCausalLM\"]}").unwrap();
    assert!(fail(&["plan", "--model", config.to_str().unwrap()]).contains("MysteryForCausalLM"));
    // Two of the four heads: each layer's two sums of five tokens of 32 numbers, of which a rank sends as much as it has.
    let shared = json(&[&golden("llama-gqa"), "--tokens", "5", "--ranks", "2"]);
    assert_eq!((shared["ranks"].as_u64(), whole["ranks"].as_u64()), (Some(2), Some(1)));
    assert_eq!(shared["total"]["bytes_comm"].as_u64(), Some(2 * 2 * 5 * 32 * 4));
    assert_eq!(whole["total"]["bytes_comm"].as_u64(), Some(0));
    let text = succeed(&["plan", "--model", &golden("mixtral"), "--tokens", "5", "--ranks", "2"]);
    assert!(
        text.contains("ranks    2; what the first of them has and does") && text.contains("\nall_reduce "),
        "{text}"
    );
    let message = fail(&["plan", "--model", &golden("llama-gqa"), "--ranks", "3"]);
    assert!(message.contains("cannot share 4 heads equally; use a divisor"), "{message}");
}

#[test]
fn files_that_are_missing_cut_or_no_models_are_one_line() {
    let (folder, path) = model();
    let whole = std::fs::read(&path).unwrap();
    for len in [0, 3, 20, 200, whole.len() / 2, whole.len() - 1] {
        let cut = folder.path().join("cut.gguf");
        std::fs::write(&cut, &whole[..len]).unwrap();
        let cut = cut.to_str().unwrap();
        assert!(fail(&["inspect", cut]).contains("cut.gguf"), "{len}");
        fail(&["generate", "--model", cut, "text"]);
    }
    let noise = folder.path().join("noise");
    std::fs::write(&noise, b"this is no model, whatever its name").unwrap();
    fail(&["inspect", noise.to_str().unwrap()]);
    assert!(fail(&["inspect", "/no/such/file"]).contains("no file or folder"));
    assert!(fail(&["generate", "--model", "gpt-9", "text"]).contains("gpt-9"));
    assert!(fail(&["fetch", "gpt-9"]).contains("known: smollm2"));
    fail(&["generate", "--model", folder.path().to_str().unwrap(), "text"]);
    let empty = tempfile::tempdir().unwrap();
    let missing = fail(&["bench", "--model", "smollm2", "--cache", empty.path().to_str().unwrap()]);
    assert!(missing.contains("portolan fetch smollm2"), "{missing}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_need_not_be_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"mod\xffel.gguf");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, portolan::models::embedded_file()).unwrap();
    let output = command(&["inspect"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = command(&["generate", "--max-tokens", "2", "hello", "--model"]).arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = command(&["inspect"]).arg(folder.path().join("no").join(name)).output().unwrap();
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("no file or folder"));
}

#[test]
fn weights_that_cannot_answer_are_refused_and_not_sampled() {
    let (folder, path) = model();
    let whole = std::fs::read(&path).unwrap();
    let changed = folder.path().join("changed.gguf");
    let changed_path = changed.to_str().unwrap();
    // Half floats of all ones are NaN, whichever tensor is the last.
    let mut bytes = whole.clone();
    let tail = bytes.len() - 256;
    bytes[tail..].fill(0xff);
    std::fs::write(&changed, bytes).unwrap();
    assert!(fail(&["generate", "--model", changed_path, "hello"]).contains("not finite"));
    // One layer fewer than there are.
    let mut bytes = whole;
    let key = b"llama.block_count";
    let value = bytes.windows(key.len()).position(|at| at == key).unwrap() + key.len() + 4;
    assert_eq!(bytes[value], 2);
    bytes[value] = 1;
    std::fs::write(&changed, bytes).unwrap();
    let message = fail(&["generate", "--model", changed_path, "hello"]);
    assert!(message.contains("blk.1.") && message.contains("configuration has 1"), "{message}");
}

#[test]
fn a_model_without_a_vocabulary_says_which_file_is_missing() {
    let message = fail(&["generate", "--model", &golden("llama-gqa"), "text"]);
    assert!(message.contains("tokenizer.json"), "{message}");
}

/// A copy of a folder of weights that has a vocabulary too.
fn with_vocabulary(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    std::fs::copy(golden("tiny-tokenizer.json"), copy.path().join("tokenizer.json")).unwrap();
    copy
}

#[test]
fn generate_writes_with_every_family_what_the_library_writes() {
    let stream = portolan::open("cpu:0").unwrap().stream(portolan::StreamOptions::default()).unwrap();
    for name in [
        "llama-gqa",
        "mixtral",
        "mixtral-window",
        "qwen2-moe",
        "qwen3-moe",
        "deepseek-v3",
        "deepseek-v3-plain",
        "mamba",
        "mamba-bias",
        "mamba2",
        "mamba2-bias",
    ] {
        let folder = with_vocabulary(name);
        let path = folder.path().to_str().unwrap();
        for (precision, said) in
            [(portolan::nn::Precision::Exact, "exact"), (portolan::nn::Precision::Fast, "fast")]
        {
            let model = portolan::TextModel::open(&stream, folder.path(), precision, &mut |_, _| {}).unwrap();
            let options = portolan::generate::GenerateOptions {
                max_tokens: 9,
                temperature: 0.0,
                stop: model.stop_tokens(),
                ..portolan::generate::GenerateOptions::default()
            };
            let mut want = String::new();
            let mut session = model.session(60).unwrap();
            let prompt = model.encode("Q%Zk").unwrap();
            let written = model.write(&mut session, &prompt, &options, &mut |part| {
                want.push_str(part);
                std::ops::ControlFlow::Continue(())
            });
            assert!(!written.unwrap().tokens.is_empty(), "{name}");
            let options = ["--precision", said, "--temperature", "0", "--max-tokens", "9", "--context", "60"];
            let got = succeed(&[&["generate", "--model", path][..], &options, &["Q%Zk"]].concat());
            assert_eq!(got, want + "\n", "{name}, {said}");
        }
        // What the same folder would cost, and what is in it.
        assert!(succeed(&["plan", "--model", path, "--tokens", "5"]).contains("\ntotal"), "{name}");
        assert!(succeed(&["inspect", path]).contains("safetensors"), "{name}");
    }
}

#[test]
fn generate_says_of_models_that_it_cannot_run_what_would_help() {
    let quantized = |method: &str| serde_json::json!({ "quant_method": method });
    for (name, key, value, says) in [
        ("bert-gelu", "vocab_size", 48.into(), "wanted one of LlamaForCausalLM"),
        ("qwen3-moe", "quantization_config", quantized("awq"), "use the f32, f16 or bf16 weights"),
        ("mamba", "quantization_config", quantized("fp8"), "bf16 weights"),
        (
            "mixtral",
            "architectures",
            serde_json::json!(["JambaForCausalLM"]),
            "wanted one of LlamaForCausalLM",
        ),
    ] {
        let folder = with_vocabulary(name);
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let message = fail(&["generate", "--model", folder.path().to_str().unwrap(), "the ship"]);
        assert!(message.contains("config.json") && message.contains(says), "{name}: {message}");
    }
}

#[test]
fn an_unknown_device_names_those_there_are() {
    let (_folder, path) = model();
    let message = fail(&["generate", "--model", &path, "--device", "cuda:0", "text"]);
    assert!(message.contains("cuda") && message.contains("cpu"), "{message}");
    let message = fail(&["generate", "--model", &path, "--device", "cpu:7", "text"]);
    assert!(message.contains("cpu:7"), "{message}");
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let (_folder, path) = model();
    let message = fail(&["generate", "--model", &path, "--context", "4", "a prompt of many tokens"]);
    assert!(message.contains("expected 1 to 4"), "{message}");
    let longest = "x".repeat(70_000);
    let message = fail(&["generate", "--model", &path, &longest]);
    assert!(message.contains("expected 1 to 65536"), "{message}");
}

#[test]
fn inspect_shows_metadata_tensors_and_totals() {
    let (_folder, path) = model();
    let shown = succeed(&["inspect", &path]);
    assert!(shown.contains("general.architecture = \"llama\""), "{shown}");
    assert!(shown.contains("tokenizer.ggml.tokens = 128 values"), "{shown}");
    assert!(shown.contains("blk.1.ffn_down.weight") && shown.contains("q4_1"), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&succeed(&["inspect", "--json", &path])).unwrap();
    let tensors = json["tensors"].as_array().unwrap();
    let down = tensors.iter().find(|t| t["name"] == "blk.1.ffn_down.weight").unwrap();
    // Blocks of 32 elements in 20 bytes.
    assert_eq!(
        (&down["shape"], &down["bytes"]),
        (&serde_json::json!([64, 160]), &serde_json::json!(64 * 5 * 20))
    );
    let bytes: u64 = tensors.iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(json["totals"]["bytes"], bytes);
    assert_eq!(json["metadata"]["tokenizer.ggml.tokens"]["length"], 128);
    let folder: serde_json::Value =
        serde_json::from_str(&succeed(&["inspect", "--json", &golden("llama-gqa")])).unwrap();
    assert_eq!((&folder["format"], &folder["metadata"]["hidden_size"]), (&"safetensors".into(), &32.into()));
}

#[test]
fn generate_is_the_same_for_any_threads_and_executor_and_obeys_its_limits() {
    let (_folder, path) = model();
    let text_of = |extra: &[&str]| {
        let mut args = vec!["generate", "--model", &path, "--max-tokens", "40"];
        args.extend(extra);
        args.push("the quick brown fox");
        succeed(&args)
    };
    let first = text_of(&["--threads", "1"]);
    assert!(first.len() > 20, "{first:?}");
    assert_eq!(text_of(&["--threads", "3"]), first);
    assert_eq!(text_of(&["--executor", "inline"]), first);
    assert_eq!(text_of(&["--executor", "chaotic", "--threads", "2"]), first);
    let drawn = text_of(&["--temperature", "1.5", "--seed", "1"]);
    assert_eq!(text_of(&["--temperature", "1.5", "--seed", "1"]), drawn);
    assert_ne!(text_of(&["--temperature", "1.5", "--seed", "2"]), drawn);
    assert_ne!(text_of(&["--repetition-penalty", "1.5"]), first);
    let none = run(&["generate", "--model", &path, "--max-tokens", "0", "hello"]);
    assert_eq!((none.status.code(), text(&none.stdout).as_str()), (Some(0), "\n"));
    assert!(
        text(&none.stderr).contains("prefill 0 tokens, -; decode 0 tokens, -;"),
        "{}",
        text(&none.stderr)
    );
    let told = run(&["generate", "--model", &path, "--context", "12", "hello"]);
    assert!(text(&told.stderr).contains("the context is full"), "{}", text(&told.stderr));
}

#[test]
fn chat_keeps_the_conversation_until_it_is_reset() {
    let (_folder, path) = model();
    let args = ["chat", "--model", &path, "--max-tokens", "24"];
    let halves = |text: String| {
        assert!(text.len().is_multiple_of(2) || text.is_empty(), "{text:?}");
        let (a, b) = text.split_at(text.len() / 2);
        (a.to_owned(), b.to_owned())
    };
    let (said, told) = chat(&args, "hello\n/reset\n\nhello\n/exit\nnever read\n");
    assert_eq!(told.matches("ended:").count(), 2, "{told}");
    let (first, second) = halves(said.clone());
    assert_eq!(first, second, "a reset conversation starts anew");
    let (kept, told) = chat(&args, "hello\nhello");
    assert_eq!(told.matches("ended:").count(), 2, "{told}");
    assert!(kept.starts_with(&first) && kept != said, "the second turn knows the first: {kept:?}");
    let (with_system, _) = chat(&[&args[..], &["--system", "be brief"]].concat(), "hello\n");
    assert_ne!(with_system, first);
    let (nothing, _) = chat(&args, "");
    assert_eq!(nothing, "");
    assert!(chat(&args, "/sing\n").1.contains("not a command"));
}

#[test]
fn chat_without_a_usable_line_or_template_is_one_line() {
    let (folder, path) = model();
    let mut bytes = std::fs::read(&path).unwrap();
    let key = b"tokenizer.chat_template";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
    bytes[at + 10] = b'_';
    let without = folder.path().join("without.gguf");
    std::fs::write(&without, bytes).unwrap();
    assert!(fail(&["chat", "--model", without.to_str().unwrap()]).contains("chat template"));
    for (extra, line, said) in
        [(&[][..], &b"\xff\xfe\n"[..], "not UTF-8"), (&["--context", "4"], b"hello\n", "longer --context")]
    {
        let mut child = command(&[&["chat", "--model", &path], extra].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(line).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    }
}

#[test]
fn bench_prints_one_json_line_with_both_speeds() {
    let (_folder, path) = model();
    let args = ["bench", "--model", &path, "--precision", "fast", "--threads", "2", "--prompt", "33"];
    let line = succeed(&[&args[..], &["--generate", "9", "--repeat", "2", "--json"]].concat());
    let row: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
    for key in ["prefill_tokens_per_second", "decode_tokens_per_second"] {
        assert!(row[key].as_f64().unwrap() > 0.0, "{line}");
    }
    assert_eq!(
        (&row["threads"], &row["precision"], &row["prompt_tokens"]),
        (&2.into(), &"fast".into(), &33.into())
    );
    let output = run(&["bench", "--model", &path, "--prompt", "65536"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn ctrl_c_ends_a_generation_with_130_after_its_token() {
    let (_folder, path) = model();
    let (mut child, mut out) = long_generation(&path);
    interrupt(&child);
    // Drained beside, or a full pipe would hold the child.
    let drain = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
    assert_eq!(exit_code_within(&mut child, Duration::from_secs(60)), Some(130));
    drain.join().unwrap().unwrap();
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert!(message.contains("ended: interrupted"), "{message}");
}

#[test]
fn a_request_to_end_or_a_hang_up_ends_a_generation_after_its_token() {
    let (_folder, path) = model();
    for (signal, code) in [("-TERM", 143), ("-HUP", 129)] {
        let (mut child, mut out) = long_generation(&path);
        send(signal, &child);
        let drain = std::thread::spawn(move || out.read_to_end(&mut Vec::new()));
        assert_eq!(exit_code_within(&mut child, Duration::from_secs(60)), Some(code), "{signal}");
        drain.join().unwrap().unwrap();
        let mut message = String::new();
        child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
        assert!(message.contains("ended: interrupted"), "{signal}: {message}");
    }
}

#[test]
fn a_second_ctrl_c_ends_a_generation_that_cannot_end_by_itself() {
    let (_folder, path) = model();
    // Nobody reads on, so the text soon fills the pipe and holds the generation in mid-token.
    let (mut child, _out) = long_generation(&path);
    std::thread::sleep(Duration::from_secs(2));
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(500));
    interrupt(&child);
    assert_eq!(exit_code_within(&mut child, Duration::from_secs(60)), Some(130));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_is_one_line() {
    let (_folder, path) = model();
    let file = |name: &str| std::fs::OpenOptions::new().write(true).open(name).unwrap();
    for args in [
        &["generate", "--model", &path, "hello"][..],
        &["inspect", &path],
        &["inspect", "--json", &path],
        &["devices"],
        &["--help"],
        &["generate", "--help"],
        &["--version"],
        &["bench", "--model", &path, "--prompt", "4", "--generate", "2", "--repeat", "1"],
    ] {
        let output = command(args).stdout(file("/dev/full")).stderr(Stdio::piped()).output().unwrap();
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {message}");
        let error = message.lines().last().unwrap_or_default();
        assert!(error.starts_with("error: ") && error.contains("No space left"), "{args:?}: {message}");
    }
}

#[test]
fn ctrl_c_ends_a_chat_that_waits_for_a_line_with_130() {
    let (_folder, path) = model();
    let mut child = command(&["chat", "--model", &path, "--max-tokens", "4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"hello\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    interrupt(&child);
    assert_eq!(exit_code_within(&mut child, Duration::from_secs(60)), Some(130));
}

#[test]
fn a_reader_that_leaves_ends_the_text_quietly() {
    let (_folder, path) = model();
    let (mut child, out) = long_generation(&path);
    drop(out);
    assert_eq!(exit_code_within(&mut child, Duration::from_secs(60)), Some(0));
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert!(!message.contains("error"), "{message}");
}
