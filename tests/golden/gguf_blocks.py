#!/usr/bin/env python3
"""Random GGUF blocks and what the `gguf` Python package makes of them.

Writes beside itself:
  gguf_blocks.gguf         one tensor of random blocks for every type that is loaded, written by the package
  gguf_blocks.safetensors  the same tensors dequantized to f32 by the package; versions in the metadata

Run:  pip install gguf numpy safetensors && python gguf_blocks.py
The seed is fixed, so the files change only with the versions recorded in them.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize
from safetensors.numpy import save_file

HERE = Path(__file__).parent
# Offsets of the f16 fields within a block: random bits there, but finite (no all-ones exponent).
HALVES = {
    T.F16: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
    T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208],
}
ROWS = 3


def blocks(rng, kind):
    """Random blocks of a type, as bytes [ROWS, bytes of a row]; rows of 512 elements."""
    per_block, size = GGML_QUANT_SIZES[kind]
    count = ROWS * 512 // per_block
    if kind == T.F32:
        raw = rng.standard_normal(count).astype("<f4").view(np.uint8).reshape(count, size)
    elif kind == T.BF16:
        raw = rng.standard_normal(count).astype("<f4").view("<u2")[1::2].copy().view(np.uint8).reshape(count, size)
    else:
        raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in HALVES.get(kind, []):
        half = raw[:, at : at + 2].copy().view("<u2")
        half[(half & 0x7C00) == 0x7C00] &= 0x83FF  # infinities and NaN become subnormal
        raw[:, at : at + 2] = half.view(np.uint8)
    return raw.reshape(ROWS, -1)


def main():
    rng = np.random.default_rng(20)
    versions = {p: importlib.metadata.version(p) for p in ("gguf", "numpy", "safetensors")}
    writer = GGUFWriter(HERE / "gguf_blocks.gguf", "blocks")
    writer.add_array("test.words", ["a", "", "ünï", "日本"])
    writer.add_array("test.numbers", [1, -2, 3])
    writer.add_float32("test.float", 0.5)
    writer.add_bool("test.flag", True)
    expected = {}
    for kind in (T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q4_K, T.Q5_K, T.Q6_K):
        name, raw = kind.name.lower(), blocks(rng, kind)
        expected[name] = np.ascontiguousarray(dequantize(raw.view({T.F32: np.float32, T.F16: np.float16}.get(kind, np.uint8)), kind), dtype=np.float32)
        assert expected[name].shape == (ROWS, 512) and np.isfinite(expected[name]).all(), name
        if kind in (T.F32, T.F16):
            writer.add_tensor(name, raw.view("<f4" if kind == T.F32 else "<f2"))
        else:
            writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, HERE / "gguf_blocks.safetensors", metadata=versions)


if __name__ == "__main__":
    main()
