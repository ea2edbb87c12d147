//! The vocabulary: token text to id and back, with what each token is for.
//! Kept apart because every other part of the tokenizer looks tokens up and none may change them.
//! Readers that fill it: `gguf.rs`, `json.rs`; the merge rules are in `bpe.rs`.

use std::collections::HashMap;
use std::sync::Arc;

use super::error::{TokenizerError, excerpt};

/// The most ids a vocabulary may have: 40 times the largest in use.
pub(crate) const MAX_TOKENS: usize = 1 << 23;
/// The longest token text in bytes; real ones stay under a few hundred.
pub(crate) const MAX_TOKEN_BYTES: usize = 1 << 16;

/// Token text to id and back. Ids without a text are legal (some files leave holes) and decode to nothing.
#[derive(Debug, Default)]
pub(crate) struct Vocab {
    texts: Vec<Option<Arc<str>>>,
    ids: HashMap<Arc<str>, u32>,
    special: Vec<bool>,
}

impl Vocab {
    /// Adds `text` as `id`; the same pair twice is accepted, any other repetition is an error.
    pub(crate) fn insert(&mut self, id: u64, text: &str) -> Result<u32, TokenizerError> {
        if id >= MAX_TOKENS as u64 {
            let seen = usize::try_from(id).unwrap_or(usize::MAX);
            return Err(TokenizerError::TooLarge { what: "a token id", seen, limit: MAX_TOKENS });
        }
        if text.len() > MAX_TOKEN_BYTES {
            let (seen, limit) = (text.len(), MAX_TOKEN_BYTES);
            return Err(TokenizerError::TooLarge { what: "the length of a token", seen, limit });
        }
        let slot = id as usize;
        let id = id as u32;
        if let Some(&other) = self.ids.get(text) {
            if other == id {
                return Ok(id);
            }
            let (first, second) = (id.min(other), id.max(other));
            return Err(TokenizerError::DuplicateToken { token: excerpt(text), first, second });
        }
        if self.texts.len() <= slot {
            self.texts.resize(slot + 1, None);
            self.special.resize(slot + 1, false);
        }
        if let Some(old) = &self.texts[slot] {
            let what = format!("token id {id}");
            let seen = format!("both `{}` and `{}`", excerpt(old), excerpt(text));
            return Err(TokenizerError::Malformed { what, seen, wanted: "one token for each id" });
        }
        let text: Arc<str> = Arc::from(text);
        self.texts[slot] = Some(Arc::clone(&text));
        self.ids.insert(text, id);
        Ok(id)
    }

    /// Marks a token as special: not spelled by text, not shown when decoding.
    pub(crate) fn set_special(&mut self, id: u32) {
        if let Some(flag) = self.special.get_mut(id as usize) {
            *flag = true;
        }
    }

    /// One more than the highest id.
    pub(crate) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// The text of `id`: `None` outside the vocabulary, `Some(None)` for a hole.
    pub(crate) fn text(&self, id: u32) -> Option<Option<&str>> {
        self.texts.get(id as usize).map(|text| text.as_deref())
    }

    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Checks an id that a file gives for a purpose.
    pub(crate) fn check(&self, what: &'static str, id: u64) -> Result<u32, TokenizerError> {
        match u32::try_from(id) {
            Ok(id) if (id as usize) < self.len() => Ok(id),
            _ => Err(TokenizerError::IdOutOfRange { what, id, vocab_size: self.len() }),
        }
    }
}
