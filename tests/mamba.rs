//! Mamba and Mamba-2 against logits of the transformers library on tiny random models (`tests/golden/mamba.py`).
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan::models::LanguageModel;
use portolan::nn::Batch;
use portolan::{Determinism, Stream, StreamOptions};
use serde_json::json;

const MODELS: [&str; 4] = ["mamba", "mamba-bias", "mamba2", "mamba2-bias"];

#[test]
fn prefill_and_decode_token_by_token_agree_with_transformers() {
    rig::expect_prefill_and_decode_to_agree(&MODELS);
}

#[test]
fn simulated_ascend_agrees_with_transformers() {
    rig::expect_simulated_ascend_to_agree(&["mamba", "mamba2"], &MODELS);
}

#[test]
fn sequences_of_any_lengths_run_side_by_side() {
    rig::expect_ragged_passes_to_agree(&MODELS);
}

/// Greedy continuation: of each prompt the bits of its logits, pass by pass. A prompt is `(slot, pass, tokens)`: it takes a
/// sequence of the cache from a pass on, from whoever had it.
fn continued(
    model: &dyn LanguageModel,
    stream: &Stream,
    slots: usize,
    prompts: &[(usize, usize, &[u32])],
    passes: usize,
) -> Vec<Vec<u32>> {
    let vocab = model.info().vocab;
    let mut cache = model.cache(stream, slots, 64).unwrap();
    // Of every slot: whose it is, tokens seen, and those to run next.
    let mut running: Vec<(Option<usize>, usize, Vec<u32>)> = vec![(None, 0, Vec::new()); slots];
    let mut bits = vec![Vec::new(); prompts.len()];
    for pass in 0..passes {
        for (which, (slot, _, prompt)) in prompts.iter().enumerate().filter(|(_, p)| p.1 == pass) {
            running[*slot] = (Some(which), 0, prompt.to_vec());
        }
        let tokens: Vec<&[u32]> = running.iter().map(|(_, _, next)| next.as_slice()).collect();
        let seen: Vec<usize> = running.iter().map(|(_, seen, _)| *seen).collect();
        let batch = Batch::new(stream, &tokens, &seen, 64).unwrap();
        let logits = model.forward(stream, &batch, &mut cache).unwrap();
        let logits = stream.download::<f32>(&logits).unwrap().wait().unwrap();
        let mut rows = logits.chunks(vocab);
        for (whose, seen, next) in &mut running {
            let Some(whose) = *whose else { continue };
            let own: Vec<&[f32]> = rows.by_ref().take(next.len()).collect();
            bits[whose].extend(own.iter().flat_map(|row| row.iter().map(|x| x.to_bits())));
            *seen += next.len();
            let last = own[own.len() - 1].iter().enumerate();
            *next = vec![last.max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as u32];
        }
    }
    bits
}

#[test]
fn a_prompt_among_others_of_any_lengths_is_continued_with_the_bits_it_has_alone() {
    let options = StreamOptions { determinism: Determinism::BatchInvariant, ..StreamOptions::default() };
    let stream = portolan::open("cpu:0").unwrap().stream(options).unwrap();
    let text: Vec<u32> = (0..40).map(|i| 3 + i * 37 % 110).collect();
    // Sequence, pass, prompt: two begin together, one later in a sequence that was idle, one in the place of the first.
    let prompts: [(usize, usize, &[u32]); 4] =
        [(0, 0, &text[..3]), (2, 0, &text[3..27]), (1, 2, &text[27..34]), (0, 4, &text[34..40])];
    for name in MODELS {
        let model = rig::load_model(&stream, &rig::folder(name)).unwrap();
        let among = continued(model.as_ref(), &stream, 3, &prompts, 7);
        for (which, (slot, begins, prompt)) in prompts.into_iter().enumerate() {
            // The first stops where another takes its place.
            let passes = if which == 0 { 4 } else { 7 - begins };
            let alone = continued(model.as_ref(), &stream, 1, &[(0, 0, prompt)], passes).swap_remove(0);
            assert_eq!(alone.len(), (prompt.len() + passes - 1) * model.info().vocab);
            assert!(among[which] == alone, "{name}: prompt {which} in sequence {slot}");
        }
    }
}

#[test]
fn a_text_model_writes_what_transformers_writes() {
    rig::expect_the_text_that_transformers_writes(&MODELS);
}

#[test]
fn a_session_remembers_what_was_said_or_begins_anew() {
    rig::expect_sessions_to_remember_what_was_said(&MODELS);
}

#[test]
fn a_perturbed_weight_is_noticed() {
    let parts = |name: &'static str, parts: &'static [&'static str]| {
        parts.iter().map(move |part| (name, format!("backbone.layers.1.mixer.{part}")))
    };
    let one = ["A_log", "D", "conv1d.weight", "in_proj.weight", "x_proj.weight", "dt_proj.weight"];
    let one: Vec<_> = one.into_iter().chain(["dt_proj.bias", "conv1d.bias", "out_proj.weight"]).collect();
    let two = ["A_log", "D", "dt_bias", "conv1d.weight", "conv1d.bias", "norm.weight", "out_proj.weight"];
    let biases = &["in_proj.bias", "out_proj.bias"];
    let weights: Vec<(&str, String)> = parts("mamba", one.leak())
        .chain(parts("mamba2", two.to_vec().leak()))
        .chain(parts("mamba-bias", biases))
        .chain(parts("mamba2-bias", biases))
        .collect();
    let weights: Vec<(&str, &str)> = weights.iter().map(|(name, tensor)| (*name, tensor.as_str())).collect();
    rig::expect_changed_weights_to_be_noticed(&weights);
}

#[test]
fn a_changed_switch_is_noticed() {
    rig::expect_changed_switches_to_be_noticed(&[
        ("mamba", "layer_norm_epsilon", json!(0.01)),
        ("mamba2", "layer_norm_epsilon", json!(0.01)),
    ]);
}

#[test]
fn weights_and_configurations_that_do_not_fit_are_refused_by_name() {
    let infinity = || json!({"__float__": "Infinity"});
    rig::expect_refusals(&[
        ("mamba", "architectures", json!(["Mamba3ForCausalLM"]), "MambaForCausalLM, Mamba2ForCausalLM"),
        ("mamba", "architectures", json!(["Mamba2ForCausalLM"]), "`num_heads` is missing"),
        ("mamba", "hidden_act", json!("gelu"), "`hidden_act` is gelu"),
        ("mamba", "num_hidden_layers", json!(3), "is of layer 3, the configuration has 3"),
        ("mamba", "num_hidden_layers", json!(5), "backbone.layers.4.norm.weight"),
        ("mamba", "expand", json!(3), "`intermediate_size` is 64"),
        ("mamba", "time_step_rank", json!(0), "`time_step_rank` is 0"),
        ("mamba", "time_step_rank", json!(3), "the model's configuration makes it [19, 64]"),
        ("mamba", "state_size", json!(9), "the model's configuration makes it [20, 64]"),
        ("mamba", "use_conv_bias", json!(false), "is a bias, the configuration has none there"),
        ("mamba-bias", "use_bias", json!(false), "is a bias, the configuration has none there"),
        ("mamba", "use_bias", json!(true), "in_proj.bias"),
        ("mamba", "conv_kernel", json!(257), "`conv_kernel` is 257"),
        ("mamba", "eos_token_id", json!(120), "`eos_token_id` is 120"),
        ("mamba", "quantization_config", json!({"quant_method": "fp8"}), "`quantization_config`"),
        ("mamba2", "n_groups", json!(3), "`n_groups` is 3"),
        ("mamba2", "head_dim", json!(9), "`head_dim` is 9 for 8 heads"),
        ("mamba2", "num_heads", json!(0), "`num_heads` is 0"),
        ("mamba2", "time_step_limit", json!([0.0, 0.1]), "limits of steps are not read"),
        ("mamba2", "time_step_limit", json!([0.001, infinity()]), "limits of steps are not read"),
    ]);
}

#[cfg(feature = "meta")]
#[test]
fn a_plan_counts_a_state_that_does_not_grow() {
    use portolan::plan::{PlanOptions, plan};
    use portolan::{OpKind, load};
    for (name, kind, floats) in [
        // Two rows of 64 channels and 8 numbers for each, in four layers.
        ("mamba", OpKind::SelectiveScan, 4 * (3 * 64 + 64 * 8)),
        ("mamba2", OpKind::SsdScan, 3 * (3 * (64 + 2 * 2 * 12) + 64 * 12)),
    ] {
        let source = load::open(&rig::folder(name)).unwrap();
        let parameters: u64 =
            source.names().iter().map(|tensor| source.shape(tensor).unwrap().numel() as u64).sum();
        let planned = |tokens, cached| {
            plan(source.as_ref(), &PlanOptions { tokens, cached, batch: 3, ..PlanOptions::default() })
                .unwrap()
        };
        let (prefill, decode, late) = (planned(16, 0), planned(1, 16), planned(1, 100_000));
        for plan in [&prefill, &decode, &late] {
            assert_eq!(plan.weight_bytes as u64, 4 * parameters, "{name}");
            assert_eq!(plan.kv_bytes, 3 * 4 * floats, "{name}");
            assert!(plan.operators.iter().all(|row| row.kind != OpKind::Fill), "{name}: no part of a pass");
        }
        assert_eq!(decode.total, late.total, "{name}");
        let scans = prefill.operators.iter().find(|row| row.kind == kind).unwrap();
        assert_eq!(scans.calls, if name == "mamba" { 4 } else { 3 });
    }
}

/// The smallest published Mamba in f32: 129,135,360 parameters are what its checkpoint holds.
#[cfg(feature = "meta")]
#[test]
fn a_published_configuration_has_the_size_of_its_checkpoint() {
    use portolan::load;
    use portolan::plan::{PlanOptions, plan};
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "architectures": ["MambaForCausalLM"], "torch_dtype": "float32", "vocab_size": 50280, "hidden_size": 768,
        "num_hidden_layers": 24, "state_size": 16, "conv_kernel": 4, "expand": 2, "intermediate_size": 1536,
        "time_step_rank": "auto", "use_bias": false, "use_conv_bias": true, "layer_norm_epsilon": 1e-5
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let source = load::open_specs(folder.path()).unwrap();
    let plan = plan(source.as_ref(), &PlanOptions::default()).unwrap();
    assert_eq!(plan.weight_bytes, 4 * 129_135_360);
}
