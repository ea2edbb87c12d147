//! What happens to text before merging: normal forms, then splitting into pieces that merges never cross.
//! The steps are data, read from the file (`json.rs`) or chosen by the name a GGUF gives (`gguf.rs`).
//! GPT-2's byte alphabet lives here too, as splitting is where bytes become characters.

use fancy_regex::Regex;
use unicode_normalization::UnicodeNormalization;

use super::error::{TokenizerError, excerpt};
use super::wordpiece::{BertNormalize, BertSplit};

/// GPT-2's splitting pattern: contractions, words, numbers, other signs, spaces.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's pattern: as GPT-2's, with numbers of at most three digits and newlines kept together.
pub(crate) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's pattern: Llama 3's with single digits.
pub(crate) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A change to the text as a whole, before splitting.
#[derive(Debug)]
pub(crate) enum Normalize {
    /// A Unicode normal form.
    Form(NormalForm),
    /// Every character to lower case.
    Lowercase,
    /// A text before a text that is not empty.
    Prepend(String),
    /// Every occurrence replaced.
    Replace(String, String),
    /// BERT's steps.
    Bert(BertNormalize),
}

/// The Unicode normal forms.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NormalForm {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
}

impl Normalize {
    pub(crate) fn apply(&self, text: String) -> String {
        match self {
            Self::Form(NormalForm::Nfc) => text.nfc().collect(),
            Self::Form(NormalForm::Nfd) => text.nfd().collect(),
            Self::Form(NormalForm::Nfkc) => text.nfkc().collect(),
            Self::Form(NormalForm::Nfkd) => text.nfkd().collect(),
            Self::Lowercase => text.to_lowercase(),
            Self::Prepend(_) if text.is_empty() => text,
            Self::Prepend(prefix) => prefix.clone() + &text,
            Self::Replace(from, to) => text.replace(from.as_str(), to),
            Self::Bert(steps) => steps.apply(text),
        }
    }
}

/// What becomes of the matches of a splitting pattern.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Matches {
    /// Each is a piece of its own.
    Isolated,
    /// Each is dropped.
    Removed,
    /// Each ends the piece before it.
    MergedWithPrevious,
    /// Each begins the piece after it.
    MergedWithNext,
}

/// One splitting step; each works on every piece the step before it left.
#[derive(Debug)]
pub(crate) enum Split {
    /// By a regular expression; `inverted`: the gaps are the matches.
    Pattern { regex: Box<Regex>, matches: Matches, inverted: bool },
    /// Every digit alone, or (`false`) every run of digits.
    Digits { each: bool },
    /// Bytes become the characters of GPT-2's alphabet, after an optional split by GPT-2's pattern.
    ByteLevel { prefix_space: bool, regex: Option<Box<Regex>> },
    /// Spaces become a visible character, and pieces begin with it.
    Metaspace { mark: char, prepend: Prepend, split: bool },
    /// At white space, which goes, and around punctuation.
    Bert(BertSplit),
}

/// Where a metaspace step adds its mark.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Prepend {
    Always,
    First,
    Never,
}

/// Compiles a pattern of a file.
pub(crate) fn compile(pattern: &str) -> Result<Box<Regex>, TokenizerError> {
    const LIMIT: usize = 1 << 13;
    if pattern.len() > LIMIT {
        return Err(TokenizerError::TooLarge {
            what: "the length of a pattern",
            seen: pattern.len(),
            limit: LIMIT,
        });
    }
    Regex::new(pattern).map(Box::new).map_err(|error| failed(pattern, &error))
}

fn failed(pattern: &str, error: &fancy_regex::Error) -> TokenizerError {
    TokenizerError::Pattern { pattern: excerpt(pattern), why: excerpt(&error.to_string()) }
}

impl Split {
    /// Splits `piece` into `out`; `first`: it stands at the start of the whole text.
    pub(crate) fn apply(
        &self,
        piece: String,
        first: bool,
        out: &mut Vec<String>,
    ) -> Result<(), TokenizerError> {
        match self {
            Self::Bert(step) => step.apply(&piece, out)?,
            Self::Pattern { regex, matches, inverted } => {
                cut(&piece, &ranges(regex, &piece, *inverted)?, *matches, out);
            }
            Self::Digits { each } => {
                let mut found: Vec<(usize, usize)> = Vec::new();
                for (at, digit) in piece.char_indices().filter(|(_, character)| character.is_numeric()) {
                    let end = at + digit.len_utf8();
                    match found.last_mut() {
                        Some(last) if !each && last.1 == at => last.1 = end,
                        _ => found.push((at, end)),
                    }
                }
                cut(&piece, &found, Matches::Isolated, out);
            }
            Self::ByteLevel { prefix_space, regex } => {
                let piece =
                    if *prefix_space && !piece.starts_with(' ') { format!(" {piece}") } else { piece };
                let from = out.len();
                match regex {
                    Some(regex) => cut(&piece, &ranges(regex, &piece, false)?, Matches::Isolated, out),
                    None => out.push(piece),
                }
                for text in &mut out[from..] {
                    *text = text.bytes().map(char_of).collect();
                }
            }
            Self::Metaspace { mark, prepend, split } => {
                let mut text = piece.replace(' ', mark.encode_utf8(&mut [0; 4]));
                let wanted = *prepend == Prepend::Always || (*prepend == Prepend::First && first);
                if wanted && !text.starts_with(*mark) {
                    text.insert(0, *mark);
                }
                if *split {
                    let found: Vec<_> = text.match_indices(*mark).map(|(at, m)| (at, at + m.len())).collect();
                    cut(&text, &found, Matches::MergedWithNext, out);
                } else {
                    out.push(text);
                }
            }
        }
        Ok(())
    }
}

/// Where `regex` matches, or (`inverted`) the gaps between its matches; empty matches are left out.
fn ranges(regex: &Regex, text: &str, inverted: bool) -> Result<Vec<(usize, usize)>, TokenizerError> {
    let mut found = Vec::new();
    let mut last = 0;
    for item in regex.find_iter(text) {
        let item = item.map_err(|error| failed(regex.as_str(), &error))?;
        let range = if inverted { (last, item.start()) } else { (item.start(), item.end()) };
        last = item.end();
        if range.0 < range.1 {
            found.push(range);
        }
    }
    if inverted && last < text.len() {
        found.push((last, text.len()));
    }
    Ok(found)
}

/// Cuts `text` at `found` (ascending, disjoint); no piece is empty.
fn cut(text: &str, found: &[(usize, usize)], matches: Matches, out: &mut Vec<String>) {
    let mut push = |from: usize, to: usize| {
        if from < to {
            out.push(text[from..to].to_owned());
        }
    };
    let mut from = 0;
    for &(start, end) in found {
        match matches {
            Matches::Isolated => {
                push(from, start);
                push(start, end);
                from = end;
            }
            Matches::Removed => {
                push(from, start);
                from = end;
            }
            Matches::MergedWithPrevious => {
                push(from, end);
                from = end;
            }
            Matches::MergedWithNext => {
                push(from, start);
                from = start;
            }
        }
    }
    push(from, text.len());
}

/// Whether a byte is its own character in GPT-2's alphabet: the printable ones of Latin-1.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The character of each byte: itself where printable, else U+0100 onward in byte order.
const ALPHABET: [char; 256] = {
    let mut table = ['\0'; 256];
    let mut byte = 0;
    let mut unprintable = 0;
    while byte < 256 {
        if is_printable(byte as u8) {
            table[byte] = byte as u8 as char;
        } else {
            table[byte] = match char::from_u32(0x100 + unprintable) {
                Some(character) => character,
                None => char::REPLACEMENT_CHARACTER,
            };
            unprintable += 1;
        }
        byte += 1;
    }
    table
};

/// The character that stands for a byte.
fn char_of(byte: u8) -> char {
    ALPHABET[usize::from(byte)]
}

/// The byte a character stands for, if it is in GPT-2's alphabet.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ 0..=0xff => Some(code as u8).filter(|&byte| is_printable(byte)),
        0x100..0x144 => ALPHABET.iter().position(|&other| other == character).map(|byte| byte as u8),
        _ => None,
    }
}
