//! From the metadata of an open GGUF file to the plain lists of `gguf.rs`.
//! The only place that knows the keys' names; the chat template's key is in `chat/mod.rs`.

use crate::load::gguf::Metadata;

use super::error::{TokenizerError, excerpt};
use super::{GgufMerges, GgufVocab, Tokenizer};

impl GgufVocab {
    /// The tokenizer fields of a GGUF file.
    ///
    /// # Errors
    /// [`TokenizerError::Gguf`] for a key that is missing or of another type, [`TokenizerError::Unsupported`] for a
    /// kind of tokenizer other than `gpt2` and `llama`.
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        let model = metadata.string("tokenizer.ggml.model")?;
        let tokens = metadata.strings("tokenizer.ggml.tokens")?.to_vec();
        let merges = match model {
            "gpt2" => GgufMerges::Ranked(metadata.strings("tokenizer.ggml.merges")?.to_vec()),
            "llama" => GgufMerges::Scores(metadata.f32s("tokenizer.ggml.scores")?.to_vec()),
            _ => {
                return Err(TokenizerError::Unsupported {
                    what: "the kind of tokenizer tokenizer.ggml.model",
                    seen: excerpt(model),
                    supported: "gpt2, llama",
                });
            }
        };
        let id = |name: &str| metadata.optional(&format!("tokenizer.ggml.{name}_token_id"), Metadata::u64);
        let flag = |name: &str| metadata.optional(&format!("tokenizer.ggml.add_{name}"), Metadata::bool);
        Ok(Self {
            types: metadata.optional("tokenizer.ggml.token_type", Metadata::i32s)?,
            pre: metadata.optional("tokenizer.ggml.pre", Metadata::string)?.map(str::to_owned),
            bos: id("bos")?,
            eos: id("eos")?,
            eot: id("eot")?,
            unknown: id("unknown")?,
            add_bos: flag("bos_token")?,
            add_eos: flag("eos_token")?,
            add_space_prefix: flag("space_prefix")?,
            ..Self::new(tokens, merges)
        })
    }
}

impl Tokenizer {
    /// Builds the tokenizer an open GGUF file carries.
    ///
    /// # Errors
    /// Those of [`GgufVocab::from_metadata`] and of [`from_gguf`](Self::from_gguf).
    pub fn from_metadata(metadata: &Metadata) -> Result<Self, TokenizerError> {
        Self::from_gguf(&GgufVocab::from_metadata(metadata)?)
    }
}
