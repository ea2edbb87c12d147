#!/usr/bin/env python3
"""Tiny random mixtures of experts and their logits, as computed by the `transformers` library.

Beside `llama.py`, which makes them: the files of each folder, their needs and their usage are described there.
Here because routing is where an implementation goes wrong unseen: a near tie between experts is refused, every expert is used.

Usage: python tests/golden/moe.py [NAME ...]      (without a name: all of them)
"""

import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import llama

EXPERTS = 6

# As in `llama.py`: configuration class, model class, what differs from its BASE, largest shard.
MODELS = {
    "mixtral": (
        MixtralConfig,
        MixtralForCausalLM,
        dict(num_key_value_heads=2, intermediate_size=24, num_local_experts=EXPERTS, num_experts_per_tok=2),
        "100KB",
    ),
    "mixtral-window": (
        MixtralConfig,
        MixtralForCausalLM,
        # Of one expert the weight is 1, however it scored.
        dict(intermediate_size=16, num_local_experts=EXPERTS, num_experts_per_tok=1, sliding_window=5),
        None,
    ),
    "qwen2-moe": (
        Qwen2MoeConfig,
        Qwen2MoeForCausalLM,
        # Weights are not divided by their sum; the first layer has no experts.
        dict(
            num_hidden_layers=3,
            num_key_value_heads=2,
            moe_intermediate_size=20,
            shared_expert_intermediate_size=28,
            num_experts=EXPERTS,
            num_experts_per_tok=3,
            mlp_only_layers=[0],
        ),
        None,
    ),
    "qwen3-moe": (
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
        # Normed q and k of heads wider than hidden_size / heads; experts in the second of every two layers.
        dict(
            num_hidden_layers=4,
            num_key_value_heads=2,
            head_dim=16,
            moe_intermediate_size=20,
            num_experts=EXPERTS,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            decoder_sparse_step=2,
            tie_word_embeddings=True,
        ),
        None,
    ),
}


@torch.no_grad()
def is_clear(model, golden):
    """Whether every token's last chosen expert leads the next one by far more than f32 sums err, and none is idle."""
    top_k = model.config.num_experts_per_tok
    gap, used = float("inf"), {}
    for i in range(len(llama.PROMPTS)):
        ids = golden[f"input_ids.{i}"].long()
        routed = model(ids, use_cache=False, output_router_logits=True).router_logits
        for layer, logits in enumerate(routed):
            best = logits.topk(top_k + 1)
            gap = min(gap, (best.values[:, top_k - 1] - best.values[:, top_k]).min().item())
            used.setdefault(layer, set()).update(best.indices[:, :top_k].flatten().tolist())
    return gap > 1e-3 and all(len(experts) == EXPERTS for experts in used.values())


if __name__ == "__main__":
    llama.main(__file__, MODELS, is_clear=is_clear)
