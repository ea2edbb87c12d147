//! What can be wrong with a vocabulary, a text or a token id, each with what to do about it.
//! Every reader and every step of the tokenizer returns this one type.
//! The chat template has its own, in `chat/error.rs`.

use std::path::PathBuf;

/// Why a tokenizer could not be built, or could not encode or decode.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The vocabulary has no token at all.
    #[error("tokenizer: the vocabulary is empty; the file is damaged or holds no tokenizer")]
    Empty,
    /// A required field is absent.
    #[error("tokenizer: {what} is missing; use a file that carries its own vocabulary")]
    Missing {
        /// The field.
        what: String,
    },
    /// A field has the wrong type or form.
    #[error("tokenizer: {what} is {seen}, wanted {wanted}; the file is damaged or of another format")]
    Malformed {
        /// The field.
        what: String,
        /// What the file holds, shortened.
        seen: String,
        /// What it should hold.
        wanted: &'static str,
    },
    /// A field names a method this tokenizer does not have.
    #[error("tokenizer: {what} `{seen}` is not supported; supported: {supported}")]
    Unsupported {
        /// The field.
        what: &'static str,
        /// What the file asks for, shortened.
        seen: String,
        /// What would have been accepted.
        supported: &'static str,
    },
    /// A count or a length is beyond any real tokenizer.
    #[error("tokenizer: {what} is {seen}, the limit is {limit}; the file is damaged")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// Its size.
        seen: usize,
        /// The largest size accepted.
        limit: usize,
    },
    /// Two ids carry the same token text, so encoding would be ambiguous.
    #[error(
        "tokenizer: token `{token}` stands for id {first} and for id {second}; the vocabulary is damaged"
    )]
    DuplicateToken {
        /// The text, shortened.
        token: String,
        /// The lower id.
        first: u32,
        /// The higher id.
        second: u32,
    },
    /// A merge names a token that the vocabulary does not have.
    #[error(
        "tokenizer: merge {rank} needs token `{token}`, which the vocabulary does not have; the file is damaged"
    )]
    UnknownMergeToken {
        /// The merge's place in the list.
        rank: usize,
        /// The missing token, shortened.
        token: String,
    },
    /// A token id is outside the vocabulary.
    #[error(
        "tokenizer: {what} is id {id}, but the vocabulary ends at {vocab_size}; model and tokenizer do not fit"
    )]
    IdOutOfRange {
        /// Where the id comes from.
        what: &'static str,
        /// The id.
        id: u64,
        /// The number of ids.
        vocab_size: usize,
    },
    /// A splitting pattern of the file cannot be compiled, or gave up on a text.
    #[error("tokenizer: pattern `{pattern}` failed: {why}; the file is damaged or hostile")]
    Pattern {
        /// The pattern, shortened.
        pattern: String,
        /// The regular-expression engine's reason.
        why: String,
    },
    /// The text holds something that no token of this vocabulary can spell.
    #[error("tokenizer: no token can spell {what}; remove it from the text")]
    Unencodable {
        /// The character or byte.
        what: String,
    },
    /// The file is not the JSON it should be.
    #[error("tokenizer: {file} is not valid: {why}; download it again")]
    Json {
        /// The file, or the kind of file.
        file: String,
        /// The parser's reason.
        why: String,
    },
    /// The file cannot be read.
    #[error("tokenizer: cannot read {}: {source}; check the path", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A field of a GGUF file is missing or of another type.
    #[error("tokenizer: {0}")]
    Gguf(#[from] crate::load::LoadError),
}

/// At most 60 characters of a file's text, escaped, so that a hostile file cannot flood a message.
pub(crate) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}
