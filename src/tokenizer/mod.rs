//! Text to token ids and back, with the vocabulary a model file brings along.
//! One engine for both sources: `gguf.rs` and `json.rs` only read, `added.rs` finds whole tokens, `split.rs` cuts the
//! text between them, `bpe.rs` merges or `wordpiece.rs` looks words up. Nothing here is random, and every bad file is a typed error.

mod added;
mod bpe;
mod error;
mod gguf;
mod json;
mod metadata;
mod split;
mod stream;
mod vocab;
mod wordpiece;

pub use error::TokenizerError;
pub(crate) use error::excerpt;
pub use gguf::{GgufMerges, GgufVocab};
pub use stream::TokenStream;

use added::{AddedToken, AddedTokens, Part};
use bpe::Bpe;
use split::{Normalize, Split, byte_of};
use vocab::Vocab;
use wordpiece::WordPiece;

/// How token texts become bytes.
#[derive(Clone, Debug, PartialEq)]
enum Decoder {
    /// Each character stands for a byte.
    ByteLevel,
    /// `▁` is a space and `<0x41>` a byte; `strip_first`: the text loses the space it was given when encoding.
    Sentence { strip_first: bool },
    /// Tokens are words, or with `prefix` parts that continue one; `cleanup`: punctuation follows without a space.
    WordPiece { prefix: String, cleanup: bool },
}

/// How a piece of text becomes ids.
#[derive(Debug)]
enum Model {
    Bpe(Bpe),
    WordPiece(WordPiece),
}

impl Model {
    fn encode(&self, vocab: &Vocab, piece: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        match self {
            Self::Bpe(bpe) => bpe.encode(vocab, piece, ids),
            Self::WordPiece(words) => {
                words.encode(vocab, piece, ids);
                Ok(())
            }
        }
    }
}

/// Tokens that mean something to a conversation, rather than to a text.
#[derive(Clone, Copy, Debug, Default)]
struct Marks {
    bos: Option<u32>,
    eos: Option<u32>,
    eot: Option<u32>,
}

/// The texts by which known model families end a turn, in order of preference.
const END_OF_TURN: [&str; 6] =
    ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endofturn|>", "<｜end▁of▁sentence｜>"];

/// A tokenizer: encodes text to ids, decodes ids to text.
///
/// # Examples
/// ```
/// use portolan::tokenizer::{GgufMerges, GgufVocab, Tokenizer};
/// let tokens = ["a", "b", "ab", "<|end|>"].map(String::from).to_vec();
/// let merges = GgufMerges::Ranked(vec!["a b".into()]);
/// let types = Some(vec![1, 1, 1, 3]);
/// let tokenizer = Tokenizer::from_gguf(&GgufVocab { types, pre: Some("gpt-2".into()), ..GgufVocab::new(tokens, merges) })?;
/// assert_eq!(tokenizer.encode("abb", false)?, [2, 1]);
/// assert_eq!(tokenizer.decode(&[2, 1, 3])?, "abb");
/// # Ok::<(), portolan::tokenizer::TokenizerError>(())
/// ```
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    model: Model,
    normalize: Vec<Normalize>,
    split: Vec<Split>,
    raw_added: AddedTokens,
    normalized_added: AddedTokens,
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    decoder: Decoder,
    marks: Marks,
}

impl Tokenizer {
    /// Puts the parts together: what both readers end with.
    fn assemble(
        mut vocab: Vocab,
        model: Model,
        normalize: Vec<Normalize>,
        split: Vec<Split>,
        added: Vec<AddedToken>,
        decoder: Decoder,
    ) -> Result<Self, TokenizerError> {
        if vocab.len() == 0 {
            return Err(TokenizerError::Empty);
        }
        for token in added.iter().filter(|token| token.special) {
            vocab.set_special(token.id);
        }
        let (mut late, early): (Vec<_>, Vec<_>) = added.into_iter().partition(|token| token.normalized);
        for token in &mut late {
            token.text = normalize.iter().fold(std::mem::take(&mut token.text), |text, step| match step {
                Normalize::Prepend(_) => text,
                step => step.apply(text),
            });
        }
        let (raw_added, normalized_added) = (AddedTokens::new(early)?, AddedTokens::new(late)?);
        let (prefix, suffix, marks) = (Vec::new(), Vec::new(), Marks::default());
        Ok(Self {
            vocab,
            model,
            normalize,
            split,
            raw_added,
            normalized_added,
            prefix,
            suffix,
            decoder,
            marks,
        })
    }

    /// Encodes `text` as plain text: a special token spelled in it is text like any other.
    ///
    /// `add_special` adds what the file asks for around every text, often a begin-of-sequence token, often nothing.
    ///
    /// # Errors
    /// [`TokenizerError::Unencodable`] where the vocabulary has no token for a character and none for unknown ones;
    /// [`TokenizerError::Pattern`] where the file's splitting pattern gives up.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_parts(text, add_special, false, None)
    }

    /// Encodes `text` with the special tokens spelled in it taken as those tokens, as a rendered chat needs.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_special(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_parts(text, add_special, true, None)
    }

    /// As [`encode_with_special`](Self::encode_with_special), where a special token with `mark` inside is text;
    /// the marks themselves are not encoded.
    pub(crate) fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>, TokenizerError> {
        self.encode_parts(text, false, true, Some(mark))
    }

    /// `text` with `mark` inside every special token that it spells.
    pub(crate) fn mark_special(&self, text: &str, mark: char) -> String {
        let normal = self.normalize.iter().fold(text.to_owned(), |text, step| step.apply(text));
        if self.normalized_added.find_special(&normal).next().is_some() {
            // Where in the text it came from cannot be told: normal forms move and join characters.
            return text.chars().flat_map(|character| [character, mark]).collect();
        }
        let mut marked = String::with_capacity(text.len());
        let mut from = 0;
        for token in self.raw_added.find_special(text) {
            let first = text[token.start..].chars().next().map_or(0, char::len_utf8);
            marked.push_str(&text[from..token.start + first]);
            marked.push(mark);
            from = token.start + first;
        }
        marked.push_str(&text[from..]);
        marked
    }

    fn encode_parts(
        &self,
        text: &str,
        add_special: bool,
        special: bool,
        mark: Option<char>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let unmarked = |text: &str| mark.map(|mark| text.replace(mark, ""));
        let mut ids = if add_special { self.prefix.clone() } else { Vec::new() };
        let mut first = true;
        for part in self.raw_added.find(text, special) {
            match part {
                Part::Token(id) => ids.push(id),
                Part::Text(text) => {
                    let text = self.normalize.iter().fold(text.to_owned(), |text, step| step.apply(text));
                    for part in self.normalized_added.find(&text, special) {
                        match part {
                            Part::Token(id) => ids.push(id),
                            Part::Text(text) => {
                                self.encode_text(unmarked(text).as_deref().unwrap_or(text), first, &mut ids)?;
                            }
                        }
                        first = false;
                    }
                }
            }
            first = false;
        }
        if add_special {
            ids.extend_from_slice(&self.suffix);
        }
        Ok(ids)
    }

    fn encode_text(&self, text: &str, first: bool, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let mut pieces = vec![text.to_owned()];
        for step in &self.split {
            let mut finer = Vec::with_capacity(pieces.len() * 2);
            for (at, piece) in pieces.into_iter().enumerate() {
                step.apply(piece, first && at == 0, &mut finer)?;
            }
            pieces = finer;
        }
        pieces.iter().try_for_each(|piece| self.model.encode(&self.vocab, piece, ids))
    }

    /// Decodes `ids`, leaving special tokens out; bytes that are no character show as U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::IdOutOfRange`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        decode_all(self.stream(), ids)
    }

    /// Decodes `ids`, special tokens spelled out.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        decode_all(self.stream_with_special(), ids)
    }

    /// A decoder for ids that arrive one by one, leaving special tokens out.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream::new(self, false)
    }

    /// A decoder for ids that arrive one by one, special tokens spelled out.
    pub fn stream_with_special(&self) -> TokenStream<'_> {
        TokenStream::new(self, true)
    }

    /// Appends the bytes of `id`; whether there were any to show.
    fn bytes_of(
        &self,
        id: u32,
        with_special: bool,
        first: bool,
        out: &mut Vec<u8>,
    ) -> Result<bool, TokenizerError> {
        let text = self.vocab.text(id).ok_or_else(|| TokenizerError::IdOutOfRange {
            what: "the token to decode",
            id: u64::from(id),
            vocab_size: self.vocab.len(),
        })?;
        let special = self.vocab.is_special(id);
        let Some(text) = text.filter(|_| with_special || !special) else { return Ok(false) };
        match &self.decoder {
            Decoder::ByteLevel => {
                let from = out.len();
                for character in text.chars() {
                    let Some(byte) = byte_of(character) else {
                        // Not in the alphabet: an added token, which stands for itself.
                        out.truncate(from);
                        out.extend_from_slice(text.as_bytes());
                        break;
                    };
                    out.push(byte);
                }
            }
            Decoder::Sentence { strip_first } => {
                if let Some(byte) = fallback_byte(text) {
                    out.push(byte);
                } else {
                    let text = text.replace('▁', " ");
                    let strip = first && *strip_first;
                    out.extend_from_slice(
                        text.strip_prefix(' ').filter(|_| strip).unwrap_or(&text).as_bytes(),
                    );
                }
            }
            Decoder::WordPiece { prefix, cleanup } => {
                out.extend_from_slice(wordpiece::spell(text, prefix, *cleanup, first).as_bytes());
            }
        }
        Ok(true)
    }

    /// The number of ids; every id the tokenizer gives or takes is below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The id of a token by its text in the file.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.vocab.id(token)
    }

    /// The text of a token in the file, where a space may be written `Ġ` or `▁`.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        self.vocab.text(id).flatten()
    }

    /// Whether `id` marks structure rather than text.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.is_special(id)
    }

    /// The begin-of-sequence token, if the file names one.
    pub fn bos_id(&self) -> Option<u32> {
        self.marks.bos
    }

    /// The end-of-sequence token, if the file names one.
    pub fn eos_id(&self) -> Option<u32> {
        self.marks.eos
    }

    /// The end-of-turn token: the one the file names, else the first of the well-known ones it has.
    pub fn eot_id(&self) -> Option<u32> {
        self.marks.eot
    }

    /// The tokens that end an answer: end of sequence and end of turn, each once.
    pub fn stop_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = [self.marks.eos, self.marks.eot].into_iter().flatten().collect();
        ids.dedup();
        ids
    }

    /// Finds the end of turn by its text where the file does not name it.
    fn guess_end_of_turn(&mut self) {
        let special = |id: &u32| self.vocab.is_special(*id);
        self.marks.eot = END_OF_TURN.iter().find_map(|text| self.vocab.id(text).filter(special));
    }
}

fn decode_all(mut stream: TokenStream<'_>, ids: &[u32]) -> Result<String, TokenizerError> {
    let mut text = String::new();
    for &id in ids {
        text.push_str(&stream.push(id)?);
    }
    text.push_str(&stream.finish());
    Ok(text)
}

/// The byte that a token like `<0x0A>` stands for.
fn fallback_byte(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let plain = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}
