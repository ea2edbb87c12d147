//! Tensor names as data: what a model asks for, and what each kind of file calls it.
//!
//! A model names its weights canonically; [`NameMap::name`] translates. `{i}` stands for the layer's number.

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

/// Llama and what is built like it: Mistral, Qwen2, SmolLM2.
pub const LLAMA: NameMap = NameMap {
    tensors: &[
        required("embedding.weight", "token_embd.weight", "model.embed_tokens.weight"),
        required("norm.weight", "output_norm.weight", "model.norm.weight"),
        optional("output.weight", "output.weight", "lm_head.weight"),
        required(
            "layers.{i}.attn_norm.weight",
            "blk.{i}.attn_norm.weight",
            "model.layers.{i}.input_layernorm.weight",
        ),
        required("layers.{i}.q.weight", "blk.{i}.attn_q.weight", "model.layers.{i}.self_attn.q_proj.weight"),
        required("layers.{i}.k.weight", "blk.{i}.attn_k.weight", "model.layers.{i}.self_attn.k_proj.weight"),
        required("layers.{i}.v.weight", "blk.{i}.attn_v.weight", "model.layers.{i}.self_attn.v_proj.weight"),
        required(
            "layers.{i}.o.weight",
            "blk.{i}.attn_output.weight",
            "model.layers.{i}.self_attn.o_proj.weight",
        ),
        optional("layers.{i}.q.bias", "blk.{i}.attn_q.bias", "model.layers.{i}.self_attn.q_proj.bias"),
        optional("layers.{i}.k.bias", "blk.{i}.attn_k.bias", "model.layers.{i}.self_attn.k_proj.bias"),
        optional("layers.{i}.v.bias", "blk.{i}.attn_v.bias", "model.layers.{i}.self_attn.v_proj.bias"),
        optional("layers.{i}.o.bias", "blk.{i}.attn_output.bias", "model.layers.{i}.self_attn.o_proj.bias"),
        required(
            "layers.{i}.ffn_norm.weight",
            "blk.{i}.ffn_norm.weight",
            "model.layers.{i}.post_attention_layernorm.weight",
        ),
        required(
            "layers.{i}.gate.weight",
            "blk.{i}.ffn_gate.weight",
            "model.layers.{i}.mlp.gate_proj.weight",
        ),
        required("layers.{i}.up.weight", "blk.{i}.ffn_up.weight", "model.layers.{i}.mlp.up_proj.weight"),
        required(
            "layers.{i}.down.weight",
            "blk.{i}.ffn_down.weight",
            "model.layers.{i}.mlp.down_proj.weight",
        ),
        optional("layers.{i}.gate.bias", "blk.{i}.ffn_gate.bias", "model.layers.{i}.mlp.gate_proj.bias"),
        optional("layers.{i}.up.bias", "blk.{i}.ffn_up.bias", "model.layers.{i}.mlp.up_proj.bias"),
        optional("layers.{i}.down.bias", "blk.{i}.ffn_down.bias", "model.layers.{i}.mlp.down_proj.bias"),
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
}

impl NameMap {
    /// The file's name of a canonical pattern; `layer` fills `{i}`. `None` for a name that the family lacks.
    pub fn name(&self, naming: Naming, canonical: &str, layer: usize) -> Option<String> {
        let tensor = self.tensors.iter().find(|t| t.canonical == canonical)?;
        Some(tensor.pattern(naming).replace("{i}", &layer.to_string()))
    }

    /// The tensor and layer a file's name stands for; `None` for a name that the family lacks.
    pub fn find(&self, naming: Naming, name: &str) -> Option<(&'static TensorName, Option<usize>)> {
        self.tensors.iter().find_map(|tensor| match tensor.pattern(naming).split_once("{i}") {
            None => (tensor.pattern(naming) == name).then_some((tensor, None)),
            Some((before, after)) => {
                let digits = name.strip_prefix(before)?.strip_suffix(after)?;
                let layer: usize = digits.parse().ok()?;
                // `01` and `+1` parse too, but are no layer's name.
                (layer.to_string() == digits).then_some((tensor, Some(layer)))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_again_under_both_namings() {
        for naming in [Naming::Gguf, Naming::HuggingFace] {
            for tensor in LLAMA.tensors {
                let name = LLAMA.name(naming, tensor.canonical, 12).unwrap();
                let layer = tensor.is_layered().then_some(12);
                assert_eq!(LLAMA.find(naming, &name), Some((tensor, layer)), "{name}");
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
        assert_eq!(LLAMA.name(Naming::Gguf, "layers.{i}.router.weight", 0), None);
    }
}
