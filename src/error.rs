//! The error of everything above the contract: operators, files, tokenizers, fetching.

use crate::load::LoadError;
use portolan_ops::OpError;

/// Whatever went wrong, with the message of the part that noticed.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operator or a device.
    #[error(transparent)]
    Op(#[from] OpError),
    /// A model file.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A vocabulary or a text.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A chat template.
    #[error(transparent)]
    Chat(#[from] crate::chat::ChatError),
    /// Bringing a model here.
    #[error(transparent)]
    Fetch(#[from] crate::fetch::FetchError),
    /// A prompt that is empty or longer than the context.
    #[error(
        "the prompt has {tokens} tokens, expected 1 to {max}; {}",
        if *tokens == 0 { "give some text" } else { "shorten it, or ask for a longer context" }
    )]
    Prompt {
        /// Tokens given.
        tokens: usize,
        /// Tokens that fit.
        max: usize,
    },
    /// Weights that compute infinities or no numbers at all.
    #[error(
        "the model computes numbers that are not finite; its weights are damaged, fetch or convert them again"
    )]
    NotFinite,
}
