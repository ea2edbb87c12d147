//! DeepSeek-V3 against logits of the transformers library on tiny random models (`tests/golden/deepseek.py`). A prompt
//! is answered by the naive form of latent attention, one token by the absorbed form.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use serde_json::json;

const MODELS: [&str; 2] = ["deepseek-v3", "deepseek-v3-plain"];

#[test]
fn prefill_and_decode_token_by_token_agree_with_transformers() {
    rig::expect_prefill_and_decode_to_agree(&MODELS);
}

#[test]
fn simulated_ascend_agrees_with_transformers() {
    rig::expect_simulated_ascend_to_agree(&["deepseek-v3-plain"], &MODELS);
}

#[test]
fn sequences_of_any_lengths_run_side_by_side() {
    rig::expect_ragged_passes_to_agree(&MODELS);
}

#[test]
fn a_text_model_writes_what_transformers_writes() {
    rig::expect_the_text_that_transformers_writes(&MODELS);
}

#[test]
fn a_session_remembers_what_was_said() {
    rig::expect_sessions_to_remember_what_was_said(&MODELS);
}

#[test]
fn a_perturbed_weight_is_noticed() {
    rig::expect_changed_weights_to_be_noticed(&[
        ("deepseek-v3", "model.layers.1.self_attn.q_a_proj.weight"),
        ("deepseek-v3", "model.layers.1.self_attn.q_a_layernorm.weight"),
        ("deepseek-v3", "model.layers.2.self_attn.q_b_proj.weight"),
        ("deepseek-v3", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"),
        ("deepseek-v3", "model.layers.2.self_attn.kv_a_layernorm.weight"),
        ("deepseek-v3", "model.layers.1.self_attn.kv_b_proj.weight"),
        ("deepseek-v3", "model.layers.1.self_attn.o_proj.weight"),
        ("deepseek-v3", "model.layers.0.mlp.down_proj.weight"),
        ("deepseek-v3", "model.layers.1.mlp.gate.weight"),
        ("deepseek-v3", "model.layers.2.mlp.gate.e_score_correction_bias"),
        ("deepseek-v3", "model.layers.2.mlp.experts.5.up_proj.weight"),
        ("deepseek-v3", "model.layers.1.mlp.shared_experts.gate_proj.weight"),
        ("deepseek-v3-plain", "model.layers.1.self_attn.q_proj.weight"),
        ("deepseek-v3-plain", "model.layers.1.mlp.shared_experts.down_proj.weight"),
    ]);
}

#[test]
fn a_changed_switch_is_noticed() {
    let rope = |mscale: f64, all: f64| {
        json!({
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
            "mscale": mscale, "mscale_all_dim": all
        })
    };
    rig::expect_changed_switches_to_be_noticed(&[
        ("deepseek-v3", "rope_interleave", json!(false)),
        ("deepseek-v3", "norm_topk_prob", json!(false)),
        ("deepseek-v3", "routed_scaling_factor", json!(2.0)),
        ("deepseek-v3", "topk_group", json!(4)),
        ("deepseek-v3", "n_group", json!(2)),
        // One that turns queries and keys longer, one that makes scores sharper.
        ("deepseek-v3", "rope_parameters", rope(1.0, 1.3)),
        ("deepseek-v3", "rope_parameters", rope(1.3 * 0.7, 1.3 * 1.3)),
        ("deepseek-v3", "rms_norm_eps", json!(0.01)),
        ("deepseek-v3-plain", "rope_interleave", json!(true)),
    ]);
}

#[test]
fn a_half_width_cache_answers_alike() {
    rig::expect_half_width_caches_to_answer_alike(&MODELS);
}

#[test]
fn weights_and_configurations_that_do_not_fit_are_refused_by_name() {
    let yarn = |key: &str, value: serde_json::Value| {
        let mut rope = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
        rope[key] = value;
        rope
    };
    rig::expect_refusals(&[
        ("deepseek-v3", "architectures", json!(["DeepseekV2ForCausalLM"]), "DeepseekV3ForCausalLM"),
        ("deepseek-v3", "attention_bias", json!(true), "biases of latent attention are not read"),
        ("deepseek-v3", "mlp_bias", json!(true), "biases of experts are not read"),
        ("deepseek-v3", "num_key_value_heads", json!(2), "`num_key_value_heads` is 2"),
        ("deepseek-v3", "moe_layer_freq", json!(2), "`moe_layer_freq` is 2"),
        ("deepseek-v3", "scoring_func", json!("softmax"), "`scoring_func` is softmax"),
        ("deepseek-v3", "topk_method", json!("greedy"), "`topk_method` is greedy"),
        (
            "deepseek-v3",
            "quantization_config",
            json!({"quant_method": "fp8"}),
            "weight_block_size` is missing",
        ),
        ("deepseek-v3", "hidden_act", json!("gelu"), "`hidden_act` is gelu"),
        ("deepseek-v3", "n_group", json!(3), "`n_group` is 3"),
        ("deepseek-v3", "n_group", json!(null), "`n_group` is missing"),
        ("deepseek-v3", "topk_group", json!(1), "`topk_group` is 1"),
        ("deepseek-v3", "topk_group", json!(5), "`topk_group` is 5"),
        ("deepseek-v3", "routed_scaling_factor", json!(0.0), "`routed_scaling_factor` is 0"),
        ("deepseek-v3", "qk_rope_head_dim", json!(7), "`rotated elements` is 7"),
        ("deepseek-v3", "qk_nope_head_dim", json!(0), "`qk_nope_head_dim` is 0"),
        ("deepseek-v3", "v_head_dim", json!(11), "the model's configuration makes it [92, 16]"),
        ("deepseek-v3", "kv_lora_rank", json!(0), "`kv_lora_rank` is 0"),
        ("deepseek-v3", "q_lora_rank", json!(null), "makes queries in two steps, `q_lora_rank` is none"),
        ("deepseek-v3-plain", "q_lora_rank", json!(20), "makes queries at once, `q_lora_rank` is 20"),
        (
            "deepseek-v3",
            "n_shared_experts",
            json!(0),
            "is of a feed-forward layer that the configuration has not",
        ),
        ("deepseek-v3", "first_k_dense_replace", json!(2), "is of a feed-forward layer"),
        ("deepseek-v3", "first_k_dense_replace", json!(0), "is of a feed-forward layer"),
        ("deepseek-v3", "n_routed_experts", json!(12), "the model's configuration makes it [12, 32]"),
        ("deepseek-v3-plain", "n_routed_experts", json!(6), "is of expert 6, the configuration has 6"),
        ("deepseek-v3", "num_hidden_layers", json!(2), "is of layer 2, the configuration has 2"),
        (
            "deepseek-v3",
            "rope_parameters",
            json!({"rope_type": "dynamic"}),
            "`rope_scaling.rope_type` is dynamic",
        ),
        (
            "deepseek-v3",
            "rope_parameters",
            yarn("truncate", json!(false)),
            "`rope_scaling.truncate` is false",
        ),
        ("deepseek-v3", "rope_parameters", yarn("mscale", json!("1")), "`rope_scaling.mscale`"),
    ]);
}

#[test]
fn layers_that_guess_ahead_are_left_alone() {
    let stream = rig::stream();
    let copy = rig::configured("deepseek-v3", "num_hidden_layers", json!(2));
    let path = copy.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["num_nextn_predict_layers"] = json!(1);
    std::fs::write(&path, config.to_string()).unwrap();
    let model = rig::load_model(&stream, copy.path()).unwrap();
    let sequences = &rig::goldens("deepseek-v3")[0].0;
    let logits = rig::logits(&stream, model.as_ref(), sequences, 7);
    assert!(logits.iter().any(|x| x.abs() > 1.0));
}

#[cfg(feature = "meta")]
#[test]
fn a_plan_counts_latent_entries_and_the_form_of_attention_that_runs() {
    use portolan::nn::Precision;
    use portolan::plan::{PlanOptions, plan};
    use portolan::{OpKind, load};
    let source = load::open(&rig::folder("deepseek-v3")).unwrap();
    let parameters: u64 =
        source.names().iter().map(|tensor| source.shape(tensor).unwrap().numel() as u64).sum();
    let planned = |tokens, cached, precision| {
        let options = PlanOptions { tokens, cached, batch: 2, precision, ..PlanOptions::default() };
        plan(source.as_ref(), &options).unwrap()
    };
    let calls = |plan: &portolan::plan::Plan, kind| {
        plan.operators.iter().find(|row| row.kind == kind).map_or(0, |row| row.calls)
    };
    let (prefill, decode) = (planned(20, 0, Precision::Exact), planned(1, 19, Precision::Exact));
    for plan in [&prefill, &decode] {
        assert_eq!(plan.weight_bytes as u64, 4 * parameters);
        // 16 latent elements and 8 rotated ones, in three layers.
        assert_eq!(plan.kv_bytes, 2 * 20 * 3 * (16 + 8) * 4);
    }
    assert_eq!(planned(1, 19, Precision::Fast).kv_bytes, decode.kv_bytes / 2);
    assert_eq!((calls(&prefill, OpKind::Attention), calls(&prefill, OpKind::MlaDecode)), (3, 0));
    assert_eq!((calls(&decode, OpKind::Attention), calls(&decode, OpKind::MlaDecode)), (0, 3));
}

/// DeepSeek-V3 as published, in bf16: what the paper says of its size (DeepSeek-AI 2024, abstract and section 4.2).
#[cfg(feature = "meta")]
#[test]
fn the_published_model_has_the_size_that_its_paper_says() {
    use portolan::load;
    use portolan::nn::Precision;
    use portolan::plan::{PlanOptions, plan};
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{
        "architectures": ["DeepseekV3ForCausalLM"], "torch_dtype": "bfloat16", "hidden_act": "silu",
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "num_nextn_predict_layers": 1, "num_attention_heads": 128,
        "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "num_experts_per_tok": 8,
        "routed_scaling_factor": 2.5, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3,
        "moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "norm_topk_prob": true,
        "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000, "tie_word_embeddings": false,
        "bos_token_id": 0, "eos_token_id": 1, "attention_bias": false, "rope_scaling": {
            "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            "mscale": 1.0, "mscale_all_dim": 1.0
        }
    }"#;
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let source = load::open_specs(folder.path()).unwrap();
    let decode = plan(source.as_ref(), &PlanOptions { precision: Precision::Fast, ..PlanOptions::default() });
    let decode = decode.unwrap();
    let near =
        |got: f64, want: f64| assert!((got / want - 1.0).abs() < 0.02, "{got:e}, the paper says {want:e}");
    // 671 billion parameters, of which 37 are a token's; its row of the embedding is looked up, not multiplied.
    near(decode.weight_bytes as f64 / 2.0, 671e9);
    near(decode.total.flops as f64 / 2.0, 37e9 - 129_280.0 * 7168.0);
    // 512 and 64 numbers a token and layer.
    assert_eq!(decode.kv_bytes, 61 * (512 + 64) * 2);
    // As its checkpoint is stored: a byte a parameter, but for few.
    let mut config: serde_json::Value = serde_json::from_str(config).unwrap();
    config["quantization_config"] = json!({
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let source = load::open_specs(folder.path()).unwrap();
    near(plan(source.as_ref(), &PlanOptions::default()).unwrap().weight_bytes as f64, 671e9);
}
