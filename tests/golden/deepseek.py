#!/usr/bin/env python3
"""Tiny random DeepSeek-V3 models and their logits, as computed by the `transformers` library.

Beside `llama.py`, which makes them: the files of each folder, their needs and their usage are described there.
Here because routing within groups of experts and the two forms of latent attention are where an implementation goes wrong
unseen: a near tie between experts or groups is refused, and so is a model in which bias or groups decide nothing.

Usage: python tests/golden/deepseek.py [NAME ...]      (without a name: all of them)
"""

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

import llama

EXPERTS = 8

BASE = dict(
    llama.BASE,
    intermediate_size=24,
    moe_intermediate_size=8,
    n_routed_experts=EXPERTS,
    num_experts_per_tok=3,
    n_group=4,
    topk_group=2,
    n_shared_experts=1,
    routed_scaling_factor=2.5,
    first_k_dense_replace=1,
    q_lora_rank=20,
    kv_lora_rank=16,
    qk_nope_head_dim=12,
    qk_rope_head_dim=8,
    v_head_dim=10,
    num_mtp_layers=0,
)

# As in `llama.py`: configuration class, model class, what differs from BASE, largest shard.
MODELS = {
    "deepseek-v3": (
        DeepseekV3Config,
        DeepseekV3ForCausalLM,
        # As published: scores sharpened by what stretches the context.
        dict(
            num_hidden_layers=3,
            rope_parameters=llama.rope(
                "yarn", factor=4.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.3
            ),
        ),
        "100KB",
    ),
    "deepseek-v3-plain": (
        DeepseekV3Config,
        DeepseekV3ForCausalLM,
        # Uncompressed queries, pairs of halves, two shared experts, weights that are not divided by their sum.
        dict(
            q_lora_rank=None,
            rope_interleave=False,
            n_shared_experts=2,
            norm_topk_prob=False,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            routed_scaling_factor=1.5,
            tie_word_embeddings=True,
        ),
        None,
    ),
}


def adjust(model, name):
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.e_score_correction_bias.normal_(0.0, 0.2)


def chosen(choice, groups, open_groups, top_k):
    """The best experts of the best groups: ids, and by how much groups and experts lead those left out."""
    grouped = choice.view(len(choice), groups, -1)
    ranked = grouped.topk(2).values.sum(-1).sort(descending=True)
    kept = torch.zeros(len(choice), groups).scatter(1, ranked.indices[:, :open_groups], 1.0)
    open_choice = grouped.masked_fill(kept[..., None] == 0, float("-inf")).view_as(choice)
    best = open_choice.topk(top_k + 1)
    gap = (best.values[:, top_k - 1] - best.values[:, top_k]).min()
    if open_groups < groups:
        gap = min(gap, (ranked.values[:, open_groups - 1] - ranked.values[:, open_groups]).min())
    return best.indices[:, :top_k].sort().values, gap.item()


@torch.no_grad()
def is_clear(model, golden):
    """Whether no choice hangs on rounding, every expert is used, and neither the bias nor the groups are idle."""
    config = model.config
    logits = {}

    def keep(gate, _, out):
        logits.setdefault(gate, []).append(out[0])

    gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
    handles = [gate.register_forward_hook(keep) for gate in gates]
    for i in range(len(llama.PROMPTS)):
        model(golden[f"input_ids.{i}"].long(), use_cache=False)
    for handle in handles:
        handle.remove()
    for gate, rows in logits.items():
        scores = torch.cat(rows).sigmoid()
        biased = scores + gate.e_score_correction_bias
        limits = (config.n_group, config.topk_group, config.num_experts_per_tok)
        ids, gap = chosen(biased, *limits)
        without_bias, _ = chosen(scores, *limits)
        without_groups, _ = chosen(biased, 1, 1, config.num_experts_per_tok)
        if gap < 1e-3 or len(ids.unique()) < EXPERTS or ids.equal(without_bias) or ids.equal(without_groups):
            return False
    return True


if __name__ == "__main__":
    llama.main(__file__, MODELS, BASE, adjust, is_clear)
