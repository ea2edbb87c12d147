//! WordPiece (Wu et al. 2016) as BERT uses it: its normalizer, its splitter, and the longest token from the left.
//! Kept in one file, as the three are one method: none of them is of use to a byte-pair vocabulary.
//! What becomes of added tokens and templates around them is `mod.rs`'s business.

use fancy_regex::Regex;
use unicode_normalization::UnicodeNormalization;

use super::error::{TokenizerError, excerpt};
use super::split::compile;
use super::vocab::Vocab;

/// What BERT's normalizer does, in this order.
#[derive(Debug)]
pub(crate) struct BertNormalize {
    /// Control characters go, white space becomes a space.
    pub(crate) clean_text: Option<Box<Regex>>,
    /// Chinese characters become words of their own.
    pub(crate) split_chinese: bool,
    /// Letters lose their accents.
    pub(crate) strip_accents: Option<Box<Regex>>,
    /// Every character to lower case.
    pub(crate) lowercase: bool,
}

// Characters are what they were in Unicode 8, the tables of the library that gave published models their ids. Since then
// more were assigned, and the few that are named here changed their kind.

/// Characters that are neither seen nor white space: control, format, private use; and U+FFFD, which decoders leave.
const INVISIBLE: &str = r"[[\p{Cc}\p{Cf}\p{Co}\x{FFFD}&&\p{Age:8.0}]--[\t\n\r]]";
/// Marks that take no room of their own.
const ACCENTS: &str = r"[[\p{Mn}\x{1734}\x{1171E}&&\p{Age:8.0}]--[\x{1885}\x{1886}\x{A9BD}\x{111C9}]]";

impl BertNormalize {
    pub(crate) fn new(
        clean_text: bool,
        split_chinese: bool,
        strip_accents: bool,
        lowercase: bool,
    ) -> Result<Self, TokenizerError> {
        Ok(Self {
            clean_text: clean_text.then(|| compile(INVISIBLE)).transpose()?,
            split_chinese,
            strip_accents: strip_accents.then(|| compile(ACCENTS)).transpose()?,
            lowercase,
        })
    }

    pub(crate) fn apply(&self, mut text: String) -> String {
        if let Some(invisible) = &self.clean_text {
            let spaced = |c: char| if c.is_whitespace() { ' ' } else { c };
            text = invisible.replace_all(&text, "").chars().map(spaced).collect();
        }
        if self.split_chinese && text.contains(is_chinese) {
            let mut apart = String::with_capacity(text.len() * 2);
            for c in text.chars() {
                match is_chinese(c) {
                    true => apart.extend([' ', c, ' ']),
                    false => apart.push(c),
                }
            }
            text = apart;
        }
        if let Some(accents) = &self.strip_accents {
            text = accents.replace_all(&text.nfd().collect::<String>(), "").into_owned();
        }
        if self.lowercase {
            // Character by character: the rule for a final sigma needs a word, and is not BERT's.
            text = text.chars().flat_map(char::to_lowercase).collect();
        }
        text
    }
}

/// The blocks that BERT takes for Chinese characters: the unified ideographs and their extensions, without the later ones.
fn is_chinese(c: char) -> bool {
    matches!(u32::from(c),
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x2_0000..=0x2_a6df | 0x2_a700..=0x2_b73f | 0x2_b740..=0x2_b81f
        | 0x2_b920..=0x2_ceaf | 0xf900..=0xfaff | 0x2_f800..=0x2_fa1f)
}

/// What BERT takes for punctuation: Unicode's, and all signs of ASCII.
const PUNCTUATION: &str = r"[[\p{P}\x{166D}\x{111C9}&&\p{Age:8.0}]$+<=>^`|~]";

/// Cuts at white space, which goes, and around punctuation, which stays.
#[derive(Debug)]
pub(crate) struct BertSplit {
    punctuation: Box<Regex>,
}

impl BertSplit {
    pub(crate) fn new() -> Result<Self, TokenizerError> {
        Ok(Self { punctuation: compile(PUNCTUATION)? })
    }

    pub(crate) fn apply(&self, text: &str, out: &mut Vec<String>) -> Result<(), TokenizerError> {
        for word in text.split_whitespace() {
            let mut from = 0;
            for found in self.punctuation.find_iter(word) {
                let found = found.map_err(|error| TokenizerError::Pattern {
                    pattern: PUNCTUATION.into(),
                    why: excerpt(&error.to_string()),
                })?;
                out.extend((from < found.start()).then(|| word[from..found.start()].to_owned()));
                out.push(found.as_str().to_owned());
                from = found.end();
            }
            out.extend((from < word.len()).then(|| word[from..].to_owned()));
        }
        Ok(())
    }
}

/// The longest word a file may ask to look up: the time for one grows with its square.
pub(crate) const MAX_WORD_CHARS: usize = 1 << 10;

/// The model: a word is the longest token it begins with, and the rest likewise.
#[derive(Debug)]
pub(crate) struct WordPiece {
    /// The token for words that cannot be spelled, and for those too long to try.
    pub(crate) unknown: u32,
    /// Stands before tokens that continue a word.
    pub(crate) prefix: String,
    /// The most characters of a word that is tried.
    pub(crate) max_chars: usize,
}

impl WordPiece {
    /// Appends the ids of `word` to `out`.
    pub(crate) fn encode(&self, vocab: &Vocab, word: &str, out: &mut Vec<u32>) {
        let mark = out.len();
        let ends: Vec<usize> = word.char_indices().map(|(at, c)| at + c.len_utf8()).collect();
        if ends.len() > self.max_chars {
            out.push(self.unknown);
            return;
        }
        let (mut start, mut first, mut tried) = (0, 0, String::new());
        while first < ends.len() {
            let found = (first..ends.len()).rev().find_map(|last| {
                let part = &word[start..ends[last]];
                if start == 0 {
                    return vocab.id(part).map(|id| (last, id));
                }
                tried.clear();
                tried.push_str(&self.prefix);
                tried.push_str(part);
                vocab.id(&tried).map(|id| (last, id))
            });
            let Some((last, id)) = found else {
                // Not even its pieces are kept.
                out.truncate(mark);
                out.push(self.unknown);
                return;
            };
            out.push(id);
            (start, first) = (ends[last], last + 1);
        }
    }
}

/// Text of a token as it stands in a sentence: a word begins with a space, a piece that continues one loses its mark, and
/// (`cleanup`) punctuation and English contractions move up to what they follow.
pub(crate) fn spell(token: &str, prefix: &str, cleanup: bool, first: bool) -> String {
    let mut text = match (first, token.strip_prefix(prefix)) {
        (true, _) => token.to_owned(),
        (false, Some(rest)) => rest.to_owned(),
        (false, None) => format!(" {token}"),
    };
    if cleanup {
        for (from, to) in [
            (" .", "."),
            (" ?", "?"),
            (" !", "!"),
            (" ,", ","),
            (" ' ", "'"),
            (" n't", "n't"),
            (" 'm", "'m"),
            (" do not", " don't"),
            (" 's", "'s"),
            (" 've", "'ve"),
            (" 're", "'re"),
        ] {
            text = text.replace(from, to);
        }
    }
    text
}
