#!/usr/bin/env python3
"""Tiny random DeepSeek-V3 models with weights in 8-bit floats, and their logits, as computed by the `transformers` library.

Beside `deepseek.py`, whose models these are: the weights of all products are codes of f8e4m3 with an f32 scale for every
block of rows and columns (`weight_scale_inv`), as the published checkpoints have them. Rounding is torch's.

deepseek-v3-f8       The library reads this checkpoint, codes and scales, by itself and computes in f32: nothing here
                     says what a code stands for.
deepseek-v3-f8-cut   Blocks that the rows and columns of the weights are no multiples of, so that the last ones are cut
                     short, as DeepSeek's `weight_dequant` has them. The library refuses such a checkpoint (it takes the
                     extents of blocks from the number of scales), so it is given the numbers, by that function's rule.

Needs and usage as in `llama.py`; also accelerate, which the library wants for such checkpoints.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

import deepseek
import llama

BASE = deepseek.BASE
F8 = torch.float8_e4m3fn

# Rows and columns that share a scale.
BLOCKS = {"deepseek-v3-f8": (4, 4), "deepseek-v3-f8-cut": (6, 16)}

MODELS = {name: (*deepseek.MODELS["deepseek-v3"][:3], None) for name in BLOCKS}


def is_product(name):
    """Whether a tensor is what the library makes an FP8 linear layer or expert of."""
    return name.endswith("_proj.weight") or name.endswith("_proj_with_mqa.weight")


def spread(scales, block, like):
    """Each block's scale at every element of the block."""
    every = scales.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return every[: like.shape[0], : like.shape[1]]


def coded(weight, block):
    """Codes, and of each block the scale by which its largest number is the format's largest."""
    rows, columns = (-(-extent // of) for extent, of in zip(weight.shape, block))
    room = torch.zeros(rows * block[0], columns * block[1])
    room[: weight.shape[0], : weight.shape[1]] = weight
    largest = room.view(rows, block[0], columns, block[1]).abs().amax(dim=(1, 3))
    scales = largest / torch.finfo(F8).max
    return (weight / spread(scales, block, weight)).to(F8), scales


def numbers(codes, scales, block):
    """What DeepSeek's `weight_dequant` makes of a weight: each code times the scale of its block, in f32."""
    return codes.to(torch.float32) * spread(scales, block, codes)


def adjust(model, name):
    """Replaces the weights of products by numbers that have codes, and keeps the checkpoint that says so."""
    deepseek.adjust(model, name)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        plain = load_file(path)
        model.checkpoint = {}
        for key, weight in plain.items():
            if is_product(key):
                codes, scales = coded(weight, BLOCKS[name])
                model.checkpoint |= {key: codes, f"{key}_scale_inv": scales}
                plain[key] = numbers(codes, scales, BLOCKS[name])
            else:
                model.checkpoint[key] = weight.clone()
        save_file(plain, path, metadata={"format": "pt"})
        model.load_state_dict(llama.read(folder, model, name).state_dict())


def store(folder, model, name):
    """Puts the checkpoint in the place of the numbers. Gives what the library reads of the one, or else of the others."""
    plain = llama.read(folder, model, name)
    save_file(model.checkpoint, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": BLOCKS[name],
    }
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    codes = (tensor for tensor in model.checkpoint.values() if tensor.dtype == F8)
    if any(extent % block for tensor in codes for extent, block in zip(tensor.shape, BLOCKS[name])):
        return plain
    return llama.read(folder, model, name)


if __name__ == "__main__":
    llama.main(__file__, MODELS, BASE, adjust, deepseek.is_clear, store)
