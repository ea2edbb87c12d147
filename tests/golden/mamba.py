#!/usr/bin/env python3
"""Tiny random Mamba and Mamba-2 models and their logits, as computed by the `transformers` library in plain torch.

Beside `llama.py`, which makes them: the files of each folder, their needs and their usage are described there.
Here because the library starts a state-space model where its recurrence is hardly seen: steps are short, and what is
added and multiplied is 0 or 1.

Usage: python tests/golden/mamba.py [NAME ...]      (without a name: all of them)
"""

from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

import llama

BASE = dict(
    vocab_size=120,
    hidden_size=32,
    state_size=8,
    num_hidden_layers=3,
    initializer_range=0.3,
    layer_norm_epsilon=1e-5,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
# Three chunks of the longest prompt; 64 channels in 8 heads.
TWO = dict(BASE, num_heads=8, head_dim=8, state_size=12, chunk_size=8)

# As in `llama.py`: configuration class, model class, all that differs from BASE, largest shard.
MODELS = {
    "mamba": (MambaConfig, MambaForCausalLM, dict(num_hidden_layers=4), "100KB"),
    "mamba-bias": (
        MambaConfig,
        MambaForCausalLM,
        # Everything that may have a bias has none, and the other way round.
        dict(use_bias=True, use_conv_bias=False, conv_kernel=3, time_step_rank=5, tie_word_embeddings=False),
        None,
    ),
    "mamba2": (Mamba2Config, Mamba2ForCausalLM, dict(TWO, n_groups=2), "100KB"),
    "mamba2-bias": (
        Mamba2Config,
        Mamba2ForCausalLM,
        dict(TWO, n_groups=1, use_bias=True, use_conv_bias=False, conv_kernel=3, tie_word_embeddings=True),
        None,
    ),
}


def adjust(model, name):
    for key, parameter in model.named_parameters():
        # Half-lives of about a token to some twenty.
        if key.endswith("A_log"):
            parameter.uniform_(-2.0, 1.0)
        elif key.endswith((".D", "conv1d.weight")):
            parameter.uniform_(-1.0, 1.0)
        elif key.endswith(("dt_bias", "dt_proj.bias")):
            parameter.uniform_(-3.0, 1.0)


if __name__ == "__main__":
    llama.main(__file__, MODELS, BASE, adjust)
