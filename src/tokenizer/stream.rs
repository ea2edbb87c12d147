//! Decoding one token at a time, as a model produces them.
//! A character may be spread over several tokens: its bytes are held until it is complete, so no broken text is shown.
//! Decoding all at once (`Tokenizer::decode`) goes through the same code, so both give the same text.

use super::{Tokenizer, TokenizerError};

/// Turns token ids into text as they arrive; what it gives out is always whole characters.
///
/// The texts of all [`push`](Self::push) calls and of [`finish`](Self::finish) together are what
/// [`Tokenizer::decode`] gives for all the ids. Bytes that can no longer become a character show as U+FFFD.
#[derive(Debug)]
pub struct TokenStream<'t> {
    tokenizer: &'t Tokenizer,
    with_special: bool,
    started: bool,
    held: Vec<u8>,
}

impl<'t> TokenStream<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer, with_special: bool) -> Self {
        Self { tokenizer, with_special, started: false, held: Vec::new() }
    }

    /// Adds a token and returns the text that is now complete; often one word, sometimes nothing.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`] for an id outside the vocabulary; the stream stays as it was.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        let shown = self.tokenizer.bytes_of(id, self.with_special, !self.started, &mut self.held)?;
        self.started |= shown;
        let mut text = String::new();
        let mut used = 0;
        loop {
            match core::str::from_utf8(&self.held[used..]) {
                Ok(rest) => {
                    text.push_str(rest);
                    used = self.held.len();
                }
                Err(error) => {
                    let valid = used + error.valid_up_to();
                    text.push_str(core::str::from_utf8(&self.held[used..valid]).unwrap_or_default());
                    used = valid;
                    if let Some(broken) = error.error_len() {
                        text.push(char::REPLACEMENT_CHARACTER);
                        used += broken;
                        continue;
                    }
                }
            }
            break;
        }
        self.held.drain(..used);
        Ok(text)
    }

    /// Ends the text: a character still incomplete shows as U+FFFD.
    #[must_use]
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.held).into_owned()
    }
}
