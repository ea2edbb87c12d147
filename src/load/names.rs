//! Tensor names as data: what a model asks for, and what each kind of file calls it.
//!
//! A model names its weights canonically; [`NameMap::name`] translates. `{i}` stands for the layer's number, `{e}` for
//! the expert's. GGUF files hold a layer's experts as one tensor.

use portolan_ops::rope::RopeStyle;

/// Whose names a file uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Naming {
    /// GGUF: `blk.0.attn_q.weight`.
    Gguf,
    /// The transformers library: `model.layers.0.self_attn.q_proj.weight`.
    HuggingFace,
}

/// One tensor under its three names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorName {
    /// What models ask for.
    pub canonical: &'static str,
    /// In GGUF files.
    pub gguf: &'static str,
    /// In the transformers library's checkpoints.
    pub hugging_face: &'static str,
    /// Whether a model of the family may lack it (biases, an output tied to the embedding).
    pub optional: bool,
}

/// The names of a family of models.
#[derive(Clone, Copy, Debug)]
pub struct NameMap {
    /// Every tensor.
    pub tensors: &'static [TensorName],
}

const fn required(canonical: &'static str, gguf: &'static str, hugging_face: &'static str) -> TensorName {
    TensorName { canonical, gguf, hugging_face, optional: false }
}

const fn optional(canonical: &'static str, gguf: &'static str, hugging_face: &'static str) -> TensorName {
    TensorName { canonical, gguf, hugging_face, optional: true }
}

/// Embedding, output and norms of decoders.
const BACKBONE: &[TensorName] = &[
    required("embedding.weight", "token_embd.weight", "model.embed_tokens.weight"),
    required("norm.weight", "output_norm.weight", "model.norm.weight"),
    optional("output.weight", "output.weight", "lm_head.weight"),
    required(
        "layers.{i}.attn_norm.weight",
        "blk.{i}.attn_norm.weight",
        "model.layers.{i}.input_layernorm.weight",
    ),
    required("layers.{i}.o.weight", "blk.{i}.attn_output.weight", "model.layers.{i}.self_attn.o_proj.weight"),
    required(
        "layers.{i}.ffn_norm.weight",
        "blk.{i}.ffn_norm.weight",
        "model.layers.{i}.post_attention_layernorm.weight",
    ),
];

/// Attention with keys and values of its own.
const ATTENTION: &[TensorName] = &[
    required("layers.{i}.q.weight", "blk.{i}.attn_q.weight", "model.layers.{i}.self_attn.q_proj.weight"),
    required("layers.{i}.k.weight", "blk.{i}.attn_k.weight", "model.layers.{i}.self_attn.k_proj.weight"),
    required("layers.{i}.v.weight", "blk.{i}.attn_v.weight", "model.layers.{i}.self_attn.v_proj.weight"),
    optional("layers.{i}.q.bias", "blk.{i}.attn_q.bias", "model.layers.{i}.self_attn.q_proj.bias"),
    optional("layers.{i}.k.bias", "blk.{i}.attn_k.bias", "model.layers.{i}.self_attn.k_proj.bias"),
    optional("layers.{i}.v.bias", "blk.{i}.attn_v.bias", "model.layers.{i}.self_attn.v_proj.bias"),
    optional("layers.{i}.o.bias", "blk.{i}.attn_output.bias", "model.layers.{i}.self_attn.o_proj.bias"),
];

/// Attention over latent entries.
const LATENT_ATTENTION: &[TensorName] = &[
    optional("layers.{i}.q.weight", "blk.{i}.attn_q.weight", "model.layers.{i}.self_attn.q_proj.weight"),
    optional(
        "layers.{i}.q_a.weight",
        "blk.{i}.attn_q_a.weight",
        "model.layers.{i}.self_attn.q_a_proj.weight",
    ),
    optional(
        "layers.{i}.q_a_norm.weight",
        "blk.{i}.attn_q_a_norm.weight",
        "model.layers.{i}.self_attn.q_a_layernorm.weight",
    ),
    optional(
        "layers.{i}.q_b.weight",
        "blk.{i}.attn_q_b.weight",
        "model.layers.{i}.self_attn.q_b_proj.weight",
    ),
    required(
        "layers.{i}.kv_a.weight",
        "blk.{i}.attn_kv_a_mqa.weight",
        "model.layers.{i}.self_attn.kv_a_proj_with_mqa.weight",
    ),
    required(
        "layers.{i}.kv_a_norm.weight",
        "blk.{i}.attn_kv_a_norm.weight",
        "model.layers.{i}.self_attn.kv_a_layernorm.weight",
    ),
    required(
        "layers.{i}.kv_b.weight",
        "blk.{i}.attn_kv_b.weight",
        "model.layers.{i}.self_attn.kv_b_proj.weight",
    ),
];

/// A feed-forward layer.
const FFN: &[TensorName] = &[
    required("layers.{i}.gate.weight", "blk.{i}.ffn_gate.weight", "model.layers.{i}.mlp.gate_proj.weight"),
    required("layers.{i}.up.weight", "blk.{i}.ffn_up.weight", "model.layers.{i}.mlp.up_proj.weight"),
    required("layers.{i}.down.weight", "blk.{i}.ffn_down.weight", "model.layers.{i}.mlp.down_proj.weight"),
    optional("layers.{i}.gate.bias", "blk.{i}.ffn_gate.bias", "model.layers.{i}.mlp.gate_proj.bias"),
    optional("layers.{i}.up.bias", "blk.{i}.ffn_up.bias", "model.layers.{i}.mlp.up_proj.bias"),
    optional("layers.{i}.down.bias", "blk.{i}.ffn_down.bias", "model.layers.{i}.mlp.down_proj.bias"),
];

/// Norms of each head's q and k.
const QK_NORMS: &[TensorName] = &[
    optional(
        "layers.{i}.q_norm.weight",
        "blk.{i}.attn_q_norm.weight",
        "model.layers.{i}.self_attn.q_norm.weight",
    ),
    optional(
        "layers.{i}.k_norm.weight",
        "blk.{i}.attn_k_norm.weight",
        "model.layers.{i}.self_attn.k_norm.weight",
    ),
];

/// Experts as Mixtral's checkpoints call them.
const MIXTRAL_EXPERTS: &[TensorName] = &[
    required(
        "layers.{i}.router.weight",
        "blk.{i}.ffn_gate_inp.weight",
        "model.layers.{i}.block_sparse_moe.gate.weight",
    ),
    required(
        "layers.{i}.experts.{e}.gate.weight",
        "blk.{i}.ffn_gate_exps.weight",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w1.weight",
    ),
    required(
        "layers.{i}.experts.{e}.up.weight",
        "blk.{i}.ffn_up_exps.weight",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w3.weight",
    ),
    required(
        "layers.{i}.experts.{e}.down.weight",
        "blk.{i}.ffn_down_exps.weight",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight",
    ),
];

/// Experts as Qwen's and DeepSeek's checkpoints call them.
const QWEN_EXPERTS: &[TensorName] = &[
    required("layers.{i}.router.weight", "blk.{i}.ffn_gate_inp.weight", "model.layers.{i}.mlp.gate.weight"),
    required(
        "layers.{i}.experts.{e}.gate.weight",
        "blk.{i}.ffn_gate_exps.weight",
        "model.layers.{i}.mlp.experts.{e}.gate_proj.weight",
    ),
    required(
        "layers.{i}.experts.{e}.up.weight",
        "blk.{i}.ffn_up_exps.weight",
        "model.layers.{i}.mlp.experts.{e}.up_proj.weight",
    ),
    required(
        "layers.{i}.experts.{e}.down.weight",
        "blk.{i}.ffn_down_exps.weight",
        "model.layers.{i}.mlp.experts.{e}.down_proj.weight",
    ),
];

/// The expert that every token goes to, and how much it counts.
const SHARED_EXPERT: &[TensorName] = &[
    optional(
        "layers.{i}.shared.router.weight",
        "blk.{i}.ffn_gate_inp_shexp.weight",
        "model.layers.{i}.mlp.shared_expert_gate.weight",
    ),
    optional(
        "layers.{i}.shared.gate.weight",
        "blk.{i}.ffn_gate_shexp.weight",
        "model.layers.{i}.mlp.shared_expert.gate_proj.weight",
    ),
    optional(
        "layers.{i}.shared.up.weight",
        "blk.{i}.ffn_up_shexp.weight",
        "model.layers.{i}.mlp.shared_expert.up_proj.weight",
    ),
    optional(
        "layers.{i}.shared.down.weight",
        "blk.{i}.ffn_down_shexp.weight",
        "model.layers.{i}.mlp.shared_expert.down_proj.weight",
    ),
];

/// What the choice of experts is corrected by, and the expert that every token goes to, as DeepSeek's checkpoints call them.
const DEEPSEEK_EXPERTS: &[TensorName] = &[
    required(
        "layers.{i}.router.bias",
        "blk.{i}.exp_probs_b.bias",
        "model.layers.{i}.mlp.gate.e_score_correction_bias",
    ),
    optional(
        "layers.{i}.shared.gate.weight",
        "blk.{i}.ffn_gate_shexp.weight",
        "model.layers.{i}.mlp.shared_experts.gate_proj.weight",
    ),
    optional(
        "layers.{i}.shared.up.weight",
        "blk.{i}.ffn_up_shexp.weight",
        "model.layers.{i}.mlp.shared_experts.up_proj.weight",
    ),
    optional(
        "layers.{i}.shared.down.weight",
        "blk.{i}.ffn_down_shexp.weight",
        "model.layers.{i}.mlp.shared_experts.down_proj.weight",
    ),
];

/// What Mamba's two generations share.
const STATE_SPACE: &[TensorName] = &[
    required("embedding.weight", "token_embd.weight", "backbone.embeddings.weight"),
    required("norm.weight", "output_norm.weight", "backbone.norm_f.weight"),
    optional("output.weight", "output.weight", "lm_head.weight"),
    required("layers.{i}.norm.weight", "blk.{i}.attn_norm.weight", "backbone.layers.{i}.norm.weight"),
    required("layers.{i}.in.weight", "blk.{i}.ssm_in.weight", "backbone.layers.{i}.mixer.in_proj.weight"),
    optional("layers.{i}.in.bias", "blk.{i}.ssm_in.bias", "backbone.layers.{i}.mixer.in_proj.bias"),
    required(
        "layers.{i}.conv.weight",
        "blk.{i}.ssm_conv1d.weight",
        "backbone.layers.{i}.mixer.conv1d.weight",
    ),
    optional("layers.{i}.conv.bias", "blk.{i}.ssm_conv1d.bias", "backbone.layers.{i}.mixer.conv1d.bias"),
    required("layers.{i}.a_log", "blk.{i}.ssm_a", "backbone.layers.{i}.mixer.A_log"),
    required("layers.{i}.d", "blk.{i}.ssm_d", "backbone.layers.{i}.mixer.D"),
    required("layers.{i}.out.weight", "blk.{i}.ssm_out.weight", "backbone.layers.{i}.mixer.out_proj.weight"),
    optional("layers.{i}.out.bias", "blk.{i}.ssm_out.bias", "backbone.layers.{i}.mixer.out_proj.bias"),
];

/// Where Mamba's steps and factors come from.
const SELECTION: &[TensorName] = &[
    required("layers.{i}.x.weight", "blk.{i}.ssm_x.weight", "backbone.layers.{i}.mixer.x_proj.weight"),
    required("layers.{i}.dt.weight", "blk.{i}.ssm_dt.weight", "backbone.layers.{i}.mixer.dt_proj.weight"),
    required("layers.{i}.dt.bias", "blk.{i}.ssm_dt.bias", "backbone.layers.{i}.mixer.dt_proj.bias"),
];

/// Mamba-2's step bias and the norm behind its gate.
const GATED_NORM: &[TensorName] = &[
    required("layers.{i}.dt.bias", "blk.{i}.ssm_dt.bias", "backbone.layers.{i}.mixer.dt_bias"),
    required(
        "layers.{i}.gate_norm.weight",
        "blk.{i}.ssm_norm.weight",
        "backbone.layers.{i}.mixer.norm.weight",
    ),
];

/// Lists behind each other; `N` is their length.
const fn joined<const N: usize>(lists: &[&[TensorName]]) -> [TensorName; N] {
    let mut all = [required("", "", ""); N];
    let (mut list, mut at) = (0, 0);
    while list < lists.len() {
        let mut i = 0;
        while i < lists[list].len() {
            all[at] = lists[list][i];
            (at, i) = (at + 1, i + 1);
        }
        list += 1;
    }
    assert!(at == N, "a list is longer or shorter than was said");
    all
}

/// Embedding, output, norms and attention of the Llama family and its kin.
const DECODER: &[TensorName] = &joined::<{ BACKBONE.len() + ATTENTION.len() }>(&[BACKBONE, ATTENTION]);

/// Llama and what is built like it: Mistral, Qwen2, SmolLM2.
pub const LLAMA: NameMap = NameMap { tensors: &joined::<{ DECODER.len() + FFN.len() }>(&[DECODER, FFN]) };

/// Mixtral: experts in every layer.
pub const MIXTRAL: NameMap =
    NameMap { tensors: &joined::<{ DECODER.len() + MIXTRAL_EXPERTS.len() }>(&[DECODER, MIXTRAL_EXPERTS]) };

/// Qwen2-MoE and Qwen3-MoE: layers with experts and layers without; one expert may be shared, q and k may have norms.
pub const QWEN_MOE: NameMap = NameMap {
    tensors: &joined::<
        { DECODER.len() + QK_NORMS.len() + FFN.len() + QWEN_EXPERTS.len() + SHARED_EXPERT.len() },
    >(&[DECODER, QK_NORMS, FFN, QWEN_EXPERTS, SHARED_EXPERT]),
};

/// DeepSeek-V3: latent attention; layers without experts first.
pub const DEEPSEEK: NameMap = NameMap {
    tensors: &joined::<
        { BACKBONE.len() + LATENT_ATTENTION.len() + FFN.len() + QWEN_EXPERTS.len() + DEEPSEEK_EXPERTS.len() },
    >(&[BACKBONE, LATENT_ATTENTION, FFN, QWEN_EXPERTS, DEEPSEEK_EXPERTS]),
};

/// Mamba: a recurrence for every channel.
pub const MAMBA: NameMap =
    NameMap { tensors: &joined::<{ STATE_SPACE.len() + SELECTION.len() }>(&[STATE_SPACE, SELECTION]) };

/// Mamba-2: a recurrence for every head.
pub const MAMBA2: NameMap =
    NameMap { tensors: &joined::<{ STATE_SPACE.len() + GATED_NORM.len() }>(&[STATE_SPACE, GATED_NORM]) };

/// BERT and sentence encoders built like it, as a bare encoder (`BertModel`) is stored.
pub const BERT: NameMap = NameMap {
    tensors: &[
        required("embedding.weight", "token_embd.weight", "embeddings.word_embeddings.weight"),
        required("positions.weight", "position_embd.weight", "embeddings.position_embeddings.weight"),
        required("token_types.weight", "token_types.weight", "embeddings.token_type_embeddings.weight"),
        required("norm.weight", "token_embd_norm.weight", "embeddings.LayerNorm.weight"),
        required("norm.bias", "token_embd_norm.bias", "embeddings.LayerNorm.bias"),
        required(
            "layers.{i}.q.weight",
            "blk.{i}.attn_q.weight",
            "encoder.layer.{i}.attention.self.query.weight",
        ),
        required("layers.{i}.q.bias", "blk.{i}.attn_q.bias", "encoder.layer.{i}.attention.self.query.bias"),
        required(
            "layers.{i}.k.weight",
            "blk.{i}.attn_k.weight",
            "encoder.layer.{i}.attention.self.key.weight",
        ),
        required("layers.{i}.k.bias", "blk.{i}.attn_k.bias", "encoder.layer.{i}.attention.self.key.bias"),
        required(
            "layers.{i}.v.weight",
            "blk.{i}.attn_v.weight",
            "encoder.layer.{i}.attention.self.value.weight",
        ),
        required("layers.{i}.v.bias", "blk.{i}.attn_v.bias", "encoder.layer.{i}.attention.self.value.bias"),
        required(
            "layers.{i}.o.weight",
            "blk.{i}.attn_output.weight",
            "encoder.layer.{i}.attention.output.dense.weight",
        ),
        required(
            "layers.{i}.o.bias",
            "blk.{i}.attn_output.bias",
            "encoder.layer.{i}.attention.output.dense.bias",
        ),
        required(
            "layers.{i}.attn_norm.weight",
            "blk.{i}.attn_output_norm.weight",
            "encoder.layer.{i}.attention.output.LayerNorm.weight",
        ),
        required(
            "layers.{i}.attn_norm.bias",
            "blk.{i}.attn_output_norm.bias",
            "encoder.layer.{i}.attention.output.LayerNorm.bias",
        ),
        required(
            "layers.{i}.up.weight",
            "blk.{i}.ffn_up.weight",
            "encoder.layer.{i}.intermediate.dense.weight",
        ),
        required("layers.{i}.up.bias", "blk.{i}.ffn_up.bias", "encoder.layer.{i}.intermediate.dense.bias"),
        required(
            "layers.{i}.down.weight",
            "blk.{i}.ffn_down.weight",
            "encoder.layer.{i}.output.dense.weight",
        ),
        required("layers.{i}.down.bias", "blk.{i}.ffn_down.bias", "encoder.layer.{i}.output.dense.bias"),
        required(
            "layers.{i}.ffn_norm.weight",
            "blk.{i}.layer_output_norm.weight",
            "encoder.layer.{i}.output.LayerNorm.weight",
        ),
        required(
            "layers.{i}.ffn_norm.bias",
            "blk.{i}.layer_output_norm.bias",
            "encoder.layer.{i}.output.LayerNorm.bias",
        ),
    ],
};

/// GGUF architectures of the Llama family and the pairs their q and k rows are stored for.
///
/// Converters to `llama` reorder the rows of each head of q and k (and their biases), so that element pairs
/// which lie half a head apart in the checkpoint lie side by side in the file; `qwen2` keeps the checkpoint's
/// order. Rotating by the wrong pairs gives fluent nonsense, so this is data and not a guess.
pub const GGUF_ARCHITECTURES: &[(&str, RopeStyle)] =
    &[("llama", RopeStyle::Interleaved), ("qwen2", RopeStyle::SplitHalf)];

/// The pairs that the transformers library's checkpoints of the Llama family are stored for.
pub const HUGGING_FACE_ROPE: RopeStyle = RopeStyle::SplitHalf;

impl TensorName {
    /// The pattern under `naming`.
    pub fn pattern(&self, naming: Naming) -> &'static str {
        match naming {
            Naming::Gguf => self.gguf,
            Naming::HuggingFace => self.hugging_face,
        }
    }

    /// Whether there is one a layer.
    pub fn is_layered(&self) -> bool {
        self.canonical.contains("{i}")
    }

    /// Whether there is one an expert.
    pub fn is_of_experts(&self) -> bool {
        self.canonical.contains("{e}")
    }

    /// Layer and expert in a file's name of this tensor, as far as it has them; `None` for another tensor's name.
    fn numbers(&self, naming: Naming, name: &str) -> Option<(Option<usize>, Option<usize>)> {
        let (mut pattern, mut rest) = (self.pattern(naming), name);
        let (mut layer, mut expert) = (None, None);
        while let Some(at) = pattern.find('{') {
            rest = rest.strip_prefix(&pattern[..at])?;
            let digits = &rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())];
            let number: usize = digits.parse().ok()?;
            // `01` parses too, but is no layer's name.
            if number.to_string() != digits {
                return None;
            }
            *if pattern[at..].starts_with("{i}") { &mut layer } else { &mut expert } = Some(number);
            (pattern, rest) = (&pattern[at + 3..], &rest[digits.len()..]);
        }
        (pattern == rest).then_some((layer, expert))
    }
}

/// What a file's name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The tensor.
    pub tensor: &'static TensorName,
    /// Its layer.
    pub layer: Option<usize>,
    /// Its expert, where files have one tensor for each.
    pub expert: Option<usize>,
}

impl NameMap {
    /// The file's name of a canonical pattern; `layer` fills `{i}`. `None` for a name that the family lacks.
    pub fn name(&self, naming: Naming, canonical: &str, layer: usize) -> Option<String> {
        let tensor = self.tensors.iter().find(|t| t.canonical == canonical)?;
        Some(tensor.pattern(naming).replace("{i}", &layer.to_string()))
    }

    /// As [`name`](Self::name) of one expert's tensor; `expert` fills `{e}`.
    pub fn expert_name(
        &self,
        naming: Naming,
        canonical: &str,
        layer: usize,
        expert: usize,
    ) -> Option<String> {
        Some(self.name(naming, canonical, layer)?.replace("{e}", &expert.to_string()))
    }

    /// What a file's name stands for; `None` for a name that the family lacks.
    pub fn find(&self, naming: Naming, name: &str) -> Option<Found> {
        self.tensors.iter().find_map(|tensor| {
            let (layer, expert) = tensor.numbers(naming, name)?;
            Some(Found { tensor, layer, expert })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_again_under_both_namings() {
        for family in [LLAMA, MIXTRAL, QWEN_MOE, DEEPSEEK, MAMBA, MAMBA2, BERT] {
            for naming in [Naming::Gguf, Naming::HuggingFace] {
                for tensor in family.tensors {
                    let name = family.expert_name(naming, tensor.canonical, 12, 3).unwrap();
                    let layer = tensor.is_layered().then_some(12);
                    let expert = tensor.pattern(naming).contains("{e}").then_some(3);
                    assert_eq!(family.find(naming, &name), Some(Found { tensor, layer, expert }), "{name}");
                }
            }
        }
    }

    #[test]
    fn names_that_only_look_alike_are_not_found() {
        for name in
            ["blk.01.attn_q.weight", "blk..attn_q.weight", "blk.+1.attn_q.weight", "blk.1.attn_q.weights"]
        {
            assert_eq!(LLAMA.find(Naming::Gguf, name), None, "{name}");
        }
        let expert = |number: &str| format!("model.layers.1.mlp.experts.{number}.up_proj.weight");
        assert!(QWEN_MOE.find(Naming::HuggingFace, &expert("7")).is_some());
        for number in ["", "07", "7.7", "{e}"] {
            assert_eq!(QWEN_MOE.find(Naming::HuggingFace, &expert(number)), None, "{number}");
        }
        assert_eq!(LLAMA.name(Naming::Gguf, "layers.{i}.router.weight", 0), None);
    }
}
