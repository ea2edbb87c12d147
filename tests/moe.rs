//! Mixtures of experts against logits of the transformers library on tiny random models (`tests/golden/moe.py`).
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use serde_json::json;

const MODELS: [&str; 4] = ["mixtral", "mixtral-window", "qwen2-moe", "qwen3-moe"];

#[test]
fn prefill_and_decode_token_by_token_agree_with_transformers() {
    rig::expect_prefill_and_decode_to_agree(&MODELS);
}

#[test]
fn simulated_ascend_agrees_with_transformers() {
    rig::expect_simulated_ascend_to_agree(&["mixtral", "qwen2-moe"], &MODELS);
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
        ("mixtral", "model.layers.1.block_sparse_moe.experts.4.w2.weight"),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.5.w3.weight"),
        ("mixtral-window", "model.layers.1.block_sparse_moe.gate.weight"),
        ("qwen2-moe", "model.layers.2.mlp.experts.3.gate_proj.weight"),
        ("qwen2-moe", "model.layers.1.mlp.shared_expert.up_proj.weight"),
        ("qwen2-moe", "model.layers.1.mlp.shared_expert_gate.weight"),
        ("qwen2-moe", "model.layers.0.mlp.down_proj.weight"),
        ("qwen3-moe", "model.layers.3.self_attn.q_norm.weight"),
        ("qwen3-moe", "model.layers.2.self_attn.k_norm.weight"),
    ]);
}

#[test]
fn weights_and_configurations_that_do_not_fit_are_refused_by_name() {
    rig::expect_refusals(&[
        ("mixtral", "num_local_experts", json!(5), "is of expert 5, the configuration has 5"),
        ("mixtral", "num_local_experts", json!(7), "gate.weight` is [6, 32]"),
        ("mixtral", "num_local_experts", json!(0), "`experts` is 0"),
        ("mixtral", "num_experts_per_tok", json!(7), "`experts of a token` is 7"),
        ("mixtral", "intermediate_size", json!(25), "the model's configuration makes it [25, 32]"),
        ("mixtral", "mlp_bias", json!(true), "biases of experts"),
        ("mixtral", "architectures", json!(["GPT2LMHeadModel"]), "MixtralForCausalLM"),
        (
            "qwen2-moe",
            "mlp_only_layers",
            json!([]),
            "is of a feed-forward layer that the configuration has not",
        ),
        ("qwen2-moe", "mlp_only_layers", json!([0, 1]), "is of a feed-forward layer"),
        ("qwen2-moe", "mlp_only_layers", json!(0), "a list of layers"),
        ("qwen2-moe", "decoder_sparse_step", json!(0), "`step between layers with experts` is 0"),
        ("qwen2-moe", "shared_expert_intermediate_size", json!(null), "is missing"),
        ("qwen2-moe", "qkv_bias", json!(false), "is a bias, the configuration has none there"),
        ("qwen3-moe", "architectures", json!(["Qwen2MoeForCausalLM"]), "`shared_expert_intermediate_size`"),
        ("qwen3-moe", "num_hidden_layers", json!(3), "is of layer 3, the configuration has 3"),
    ]);
}

#[cfg(feature = "meta")]
#[test]
fn a_plan_counts_the_experts_that_are_used_and_the_weights_of_all() {
    use portolan::plan::{PlanOptions, plan};
    use portolan::{OpKind, load};
    for name in MODELS {
        let source = load::open(&rig::folder(name)).unwrap();
        let parameters: u64 =
            source.names().iter().map(|tensor| source.shape(tensor).unwrap().numel() as u64).sum();
        let plan = plan(source.as_ref(), &PlanOptions { tokens: 5, ..PlanOptions::default() }).unwrap();
        assert_eq!(plan.weight_bytes as u64, 4 * parameters, "{name}");
    }
    // Two layers of experts of width 24 on a hidden size of 32, two for each of 5 tokens, three matrices each.
    let source = load::open(&rig::folder("mixtral")).unwrap();
    let plan = plan(source.as_ref(), &PlanOptions { tokens: 5, ..PlanOptions::default() }).unwrap();
    let row = plan.operators.iter().find(|row| row.kind == OpKind::ExpertFfn).unwrap();
    let products = 2 * 2 * 5 * 3 * 2 * 24 * 32;
    assert_eq!(row.calls, 2);
    // The unit and the weighted sum cost a little besides.
    assert!((products..products + products / 10).contains(&row.cost.flops), "{:?}", row.cost);
}
