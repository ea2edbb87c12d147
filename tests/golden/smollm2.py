#!/usr/bin/env python3
"""Logits and greedy text of SmolLM2-135M-Instruct from its GGUF file, as computed by the `transformers` library.

Here because the whole way from a quantized file to text is checked against code nobody of this project wrote: the `gguf`
package dequantizes to f32, `transformers` runs the model in f32. Tiny models of every shape are in `llama.py`.

Needs: torch (CPU is enough), transformers >= 5, gguf, tokenizers, safetensors, numpy.
Usage: python tests/golden/smollm2.py PATH_TO_GGUF

Writes smollm2.safetensors beside this file. Per prompt i = 0, 1 of `len` tokens:
  input_ids.i      i32 [len]
  last_logits.i    f32 [vocab]    logits of the last position
  top_logits.i     f32 [len, 32]  the largest logits of every position, descending
  top_ids.i        i32 [len, 32]  and their ids
  greedy.i         i32 [24]       greedy continuation
  greedy_margin.i  f32 [24]       by how much each of them led the second best logit
The prompts and the continuations as text are in the file's metadata (`prompt.i`, `greedy.i`).
"""

import hashlib
import sys
from pathlib import Path

import safetensors.torch
import torch
from gguf import GGUFReader, dequantize
from transformers import LlamaConfig, LlamaForCausalLM

import smollm2_text
import versions

HERE = Path(__file__).resolve().parent
TOP = 32
GREEDY_STEPS = 24
PROMPTS = [
    "The capital of France is",
    "The lighthouse keeper climbed the stairs every evening at dusk, lit the lamp, and wrote the names of the passing "
    "ships in a long blue book. Here is a Python function that adds two numbers:\n\ndef add(a, b):",
]

# GGUF name: name in transformers (of layer n where there is a {n}).
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{n}.attn_norm.weight": "model.layers.{n}.input_layernorm.weight",
    "blk.{n}.attn_q.weight": "model.layers.{n}.self_attn.q_proj.weight",
    "blk.{n}.attn_k.weight": "model.layers.{n}.self_attn.k_proj.weight",
    "blk.{n}.attn_v.weight": "model.layers.{n}.self_attn.v_proj.weight",
    "blk.{n}.attn_output.weight": "model.layers.{n}.self_attn.o_proj.weight",
    "blk.{n}.ffn_norm.weight": "model.layers.{n}.post_attention_layernorm.weight",
    "blk.{n}.ffn_gate.weight": "model.layers.{n}.mlp.gate_proj.weight",
    "blk.{n}.ffn_up.weight": "model.layers.{n}.mlp.up_proj.weight",
    "blk.{n}.ffn_down.weight": "model.layers.{n}.mlp.down_proj.weight",
}


def split_halves(weight, heads):
    """GGUF keeps q and k rows so that rope turns neighbours; transformers turns the two halves of a head."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def load(path):
    reader = GGUFReader(path)

    def value(key):
        return reader.fields["llama." + key].contents()

    weights = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    layers = value("block_count")
    config = LlamaConfig(
        vocab_size=value("vocab_size"),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        max_position_embeddings=value("context_length"),
        rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")},
        tie_word_embeddings="output.weight" not in weights,
        attn_implementation="eager",
    )
    state = {}
    for theirs, ours in NAMES.items():
        for n in range(layers) if "{n}" in theirs else [0]:
            name = theirs.format(n=n)
            if name == "output.weight" and config.tie_word_embeddings:
                continue
            weight = weights.pop(name)
            if ".attn_q." in name:
                weight = split_halves(weight, config.num_attention_heads)
            if ".attn_k." in name:
                weight = split_halves(weight, config.num_key_value_heads)
            state[ours.format(n=n)] = weight
    assert not weights, f"not understood: {sorted(weights)}"
    model = LlamaForCausalLM(config).to(torch.float32).eval()
    missing = set(model.load_state_dict(state, strict=False).missing_keys) - {"lm_head.weight"}
    assert not missing, f"not in the file: {sorted(missing)}"
    model.tie_weights()
    return model


@torch.no_grad()
def main():
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} PATH_TO_GGUF")
    path = Path(sys.argv[1])
    model = load(path)
    tokenizer, _ = smollm2_text.from_gguf(path)
    out, texts = {}, {}
    for i, prompt in enumerate(PROMPTS):
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        step = model(ids, use_cache=True)
        logits = step.logits[0]
        top = logits.topk(TOP)
        out[f"input_ids.{i}"] = ids[0].to(torch.int32)
        out[f"last_logits.{i}"] = logits[-1].clone()
        out[f"top_logits.{i}"] = top.values
        out[f"top_ids.{i}"] = top.indices.to(torch.int32)
        greedy, margins = [], []
        while True:
            best = step.logits[0, -1].topk(2)
            greedy.append(best.indices[0])
            margins.append(best.values[0] - best.values[1])
            if len(greedy) == GREEDY_STEPS:
                break
            step = model(best.indices[:1].view(1, 1), past_key_values=step.past_key_values, use_cache=True)
        out[f"greedy.{i}"] = torch.stack(greedy).to(torch.int32)
        out[f"greedy_margin.{i}"] = torch.stack(margins)
        texts[f"prompt.{i}"] = prompt
        texts[f"greedy.{i}"] = tokenizer.decode(out[f"greedy.{i}"].tolist(), skip_special_tokens=False)
        print(f"{len(logits)} tokens: {prompt!r}\n  {texts[f'greedy.{i}']!r}, smallest margin {min(margins).item():.4f}, "
              f"max |logit| {logits.abs().max().item():.2f}")
    safetensors.torch.save_file(out, HERE / "smollm2.safetensors", metadata=texts)
    versions.record(
        __file__,
        ["torch", "transformers", "gguf", "tokenizers", "safetensors", "numpy"],
        model=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


if __name__ == "__main__":
    main()
