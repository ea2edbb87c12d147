#!/usr/bin/env python3
"""Tiny random Llama-family models and their logits, as computed by the `transformers` library.

Here because the models of `src/` are checked against an implementation nobody of this project wrote.
The same for mixtures of experts is in `moe.py` and `deepseek.py`, for weights in 8-bit floats in `fp8.py`, for state-space
models in `mamba.py`, the real model in `smollm2.py`, the tokenizer in `tokenizer.py`; the tests that read the results are
in Rust.

Needs: torch (CPU is enough), transformers >= 5, safetensors, numpy.
Usage: python tests/golden/llama.py [--check] [NAME ...]      (without a name: all of them)

With the packages of VERSIONS.json the same weights, configurations, prompts and greedy ids come out on any machine, and the
same logits to rounding: torch's products (MKL, ATen) sum in an order that depends on the processor. They have the same
bits on one of the maker and the instructions that VERSIONS.json says. `--check` writes nothing and says how far what is
here is from what comes out.

For each configuration a folder NAME/ beside this file:
  config.json         as transformers saves it; for OLD_CONFIG with the keys of its version 4, as most published models have them
  model.safetensors   weights, f32 (or shards and model.safetensors.index.json)
  golden.safetensors  per prompt i = 0, 1, ...: `input_ids.i` i32 [batch, len] and `logits.i` f32 [batch, len, vocab].
                      Prompts have different lengths and were run one by one, without padding;
                      `greedy` i32 [steps]: the ids that greedy decoding appends to prompt 1, row 0,
                      `greedy_margin` f32 [steps]: by how much each of them led the second best logit
  VERSIONS.json       (once, beside this file) the package versions that computed them
"""

import json
import shutil
import sys
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import torch
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import versions

HERE = Path(__file__).resolve().parent

# Batch and length of each prompt; the second is longer than every sliding window and original context below.
PROMPTS = [(2, 7), (1, 24)]
GREEDY_STEPS = 8

BASE = dict(
    vocab_size=120,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    initializer_range=0.4,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
)


def rope(kind, **fields):
    return {"rope_type": kind, "rope_theta": 10000.0, **fields}


# name: (configuration class, model class, what differs from BASE, largest shard)
MODELS = {
    "llama-mha": (LlamaConfig, LlamaForCausalLM, {}, None),
    "llama-gqa": (LlamaConfig, LlamaForCausalLM, dict(num_key_value_heads=2, tie_word_embeddings=True), "50KB"),
    "llama-mqa-headdim": (
        LlamaConfig,
        LlamaForCausalLM,
        # head_dim is not hidden_size / heads, and every projection has a bias.
        dict(num_key_value_heads=1, head_dim=16, attention_bias=True, mlp_bias=True),
        None,
    ),
    "llama-rope-linear": (
        LlamaConfig,
        LlamaForCausalLM,
        dict(num_key_value_heads=2, rope_parameters=rope("linear", factor=4.0)),
        None,
    ),
    "llama-rope-yarn": (
        LlamaConfig,
        LlamaForCausalLM,
        dict(
            head_dim=16,
            num_key_value_heads=2,
            rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=16),
        ),
        None,
    ),
    "llama-rope-llama3": (
        LlamaConfig,
        LlamaForCausalLM,
        dict(
            head_dim=16,
            num_key_value_heads=2,
            rope_parameters=rope(
                "llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=16,
            ),
        ),
        None,
    ),
    "mistral-window": (MistralConfig, MistralForCausalLM, dict(num_key_value_heads=2, sliding_window=5), None),
    "qwen2-bias": (Qwen2Config, Qwen2ForCausalLM, dict(num_key_value_heads=2, tie_word_embeddings=True), None),
}

OLD_CONFIG = {"llama-mha": None, "llama-rope-linear": "type", "llama-rope-llama3": "rope_type"}


# What a model is like without a setting: a golden in which that changes nothing would be one that cannot fail.
WITHOUT = {
    "rope_parameters": None,
    "sliding_window": None,
    "norm_topk_prob": False,
    "rope_interleave": True,
    "routed_scaling_factor": 1.0,
}


def configuration(kind, base, **changes):
    return kind[0](**{**base, **kind[2], **changes}, attn_implementation="eager")


def build(name, kind, base, adjust, seed):
    torch.manual_seed(seed)
    model = kind[1](configuration(kind, base)).to(torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # The library starts biases at 0 and norms at 1, where a forgotten one could not be seen.
            if key.endswith(".bias"):
                parameter.normal_(0.0, 0.5)
            elif "norm" in key:
                parameter.uniform_(0.5, 1.5)
        adjust(model, name)
    return model


@torch.no_grad()
def goldens(model, seed):
    generator = torch.Generator().manual_seed(seed + 1000)
    vocab = model.config.vocab_size
    out = {}
    for i, shape in enumerate(PROMPTS):
        ids = torch.randint(3, vocab, shape, generator=generator)
        logits = model(ids, use_cache=False).logits
        assert logits.dtype == torch.float32 and torch.isfinite(logits).all()
        out[f"input_ids.{i}"] = ids.to(torch.int32)
        out[f"logits.{i}"] = logits.contiguous()
    ids = out["input_ids.1"][:1].long()
    margins = []
    for _ in range(GREEDY_STEPS):
        best = model(ids, use_cache=False).logits[0, -1].topk(2)
        margins.append(best.values[0] - best.values[1])
        ids = torch.cat([ids, best.indices[:1].view(1, 1)], dim=1)
    out["greedy"] = ids[0, -GREEDY_STEPS:].to(torch.int32)
    out["greedy_margin"] = torch.stack(margins)
    return out


def write_old_config(path, kind_key):
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    kind = scaling.pop("rope_type")
    config["rope_scaling"] = {kind_key: kind, **scaling} if kind_key else None
    config["torch_dtype"] = config.pop("dtype")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@torch.no_grad()
def check_visible(name, kind, base, model, golden):
    for key, plain_value in WITHOUT.items():
        if kind[2].get(key, plain_value) != plain_value:
            plain = kind[1](configuration(kind, base, **{key: plain_value})).eval()
            plain.load_state_dict(model.state_dict())
            logits = plain(golden["input_ids.1"].long(), use_cache=False).logits
            difference = (logits - golden["logits.1"]).abs().max().item()
            assert difference > 0.1 * golden["logits.1"].abs().max().item(), (name, key, difference)


def read(folder, model, name):
    """The model that the library makes of a folder."""
    return type(model).from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def write(folder, models, base, adjust, is_clear, store):
    name = folder.name
    kind = models[name]
    # Greedy ids can only be compared where no step is nearly a tie: take the first seed without one.
    for seed in count(100 * list(models).index(name)):
        model = build(name, kind, base, adjust, seed)
        golden = goldens(model, seed)
        if golden["greedy_margin"].min() > 0.05 and is_clear(model, golden):
            break
    check_visible(name, kind, base, model, golden)

    shutil.rmtree(folder, ignore_errors=True)
    shard = kind[3]
    model.save_pretrained(folder, max_shard_size=shard or "1GB")
    (folder / "generation_config.json").unlink(missing_ok=True)
    if name in OLD_CONFIG:
        write_old_config(folder / "config.json", OLD_CONFIG[name])
    safetensors.torch.save_file(golden, folder / "golden.safetensors")

    # What was saved must be what was run: load the folder again and compare bit by bit.
    again = store(folder, model, name)
    with torch.no_grad():
        logits = again(golden["input_ids.1"].long(), use_cache=False).logits
    assert torch.equal(logits, golden["logits.1"]), name
    size = sum(f.stat().st_size for f in folder.iterdir())
    top = logits.abs().max().item()
    print(f"{name}: {size} bytes, max |logit| {top:.2f}, std {logits.std().item():.2f}, "
          f"smallest greedy margin {golden['greedy_margin'].min().item():.3f}")


def check(folder, *how):
    """Says how far a folder is from what comes out; whether by more than rounding."""
    with TemporaryDirectory() as room:
        fresh = Path(room) / folder.name
        write(fresh, *how)
        names = {path.name for path in [*fresh.iterdir(), *folder.iterdir()]}
        same = lambda name: all((at / name).is_file() for at in (fresh, folder)) and (
            (fresh / name).read_bytes() == (folder / name).read_bytes()
        )
        others = sorted(name for name in names if not same(name))
        if others != ["golden.safetensors"]:
            print(f"  {', '.join(others) + ' differ' if others else 'the same bytes'}")
            return bool(others)
        got, want = (safetensors.torch.load_file(at / "golden.safetensors") for at in (fresh, folder))
        if got.keys() != want.keys() or any(got[key].shape != want[key].shape for key in want):
            print("  golden.safetensors has other tensors")
            return True
        top = max(want[key].abs().max().item() for key in want if key.startswith("logits"))
        apart = max((got[key].double() - want[key].double()).abs().max().item() for key in want)
        print(f"  the same, but numbers of golden.safetensors that are up to {apart / top:.1e} of the largest logit apart")
        return apart > 1e-5 * top


def main(
    script,
    models,
    base=BASE,
    adjust=lambda model, name: None,
    is_clear=lambda model, golden: True,
    store=read,
):
    """Writes the models named on the command line, settings from `base` where a model has no other. `adjust` draws what
    the library starts at values where it could not be seen; `is_clear` refuses a seed whose results hang on a near tie;
    `store` finishes a folder and reads it again.
    """
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    is_check = "--check" in sys.argv[1:]
    names = [name for name in sys.argv[1:] if name != "--check"] or list(models)
    far = False
    for name in names:
        if name not in models:
            sys.exit(f"unknown model {name}; known: {', '.join(models)}")
        work = check if is_check else write
        far |= work(HERE / name, models, base, adjust, is_clear, store) is True
    if not is_check:
        cpu = f"{versions.cpu_maker()}, {torch.backends.cpu.get_cpu_capability()}"
        versions.record(script, ["torch", "transformers", "safetensors", "numpy"], cpu=cpu)
    sys.exit(far)


if __name__ == "__main__":
    main(__file__, MODELS)
