//! Tokens that are found in the text before anything else looks at it: `<|im_end|>` and its like.
//! Special ones are matched only when the caller asks, so that a user's text cannot end a turn by spelling a token.
//! What happens to the text between them is `mod.rs`'s business.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};

use super::error::TokenizerError;

/// One such token and how it is matched.
#[derive(Clone, Debug)]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) text: String,
    pub(crate) special: bool,
    /// Takes the white space before it.
    pub(crate) strip_left: bool,
    /// Takes the white space after it.
    pub(crate) strip_right: bool,
    /// Matches only where no word character touches it.
    pub(crate) single_word: bool,
    /// Is looked for after the text has been normalized.
    pub(crate) normalized: bool,
}

/// A part of the text: plain, or a token found whole.
#[derive(Debug, PartialEq)]
pub(crate) enum Part<'t> {
    Text(&'t str),
    Token(u32),
}

/// Finds a set of added tokens, the leftmost and then the longest first.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    tokens: Vec<AddedToken>,
    all: Option<AhoCorasick>,
    plain: Option<(AhoCorasick, Vec<usize>)>,
}

impl AddedTokens {
    pub(crate) fn new(tokens: Vec<AddedToken>) -> Result<Self, TokenizerError> {
        let tokens: Vec<_> = tokens.into_iter().filter(|token| !token.text.is_empty()).collect();
        let plain: Vec<usize> = (0..tokens.len()).filter(|&at| !tokens[at].special).collect();
        let all = automaton(tokens.iter().map(|token| &token.text))?;
        let plain = automaton(plain.iter().map(|&at| &tokens[at].text))?.map(|found| (found, plain));
        Ok(Self { tokens, all, plain })
    }

    /// Where `text` spells a special token, overlapping ones too: breaking them all leaves none to be found.
    pub(crate) fn find_special<'t>(&'t self, text: &'t str) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let found = self.all.as_ref()?.find(aho_corasick::Input::new(text).range(from..))?;
            // The next may begin inside this one.
            from = found.start() + text[found.start()..].chars().next().map_or(1, char::len_utf8);
            Some(found)
        })
        .filter(|found| self.tokens[found.pattern().as_usize()].special)
        .map(|found| found.range())
    }

    /// Cuts `text` at the tokens it spells; special tokens only when `special`.
    pub(crate) fn find<'t>(&self, text: &'t str, special: bool) -> Vec<Part<'t>> {
        let mut parts = Vec::new();
        let mut from = 0;
        let automaton = if special { self.all.as_ref() } else { self.plain.as_ref().map(|(found, _)| found) };
        for found in automaton.iter().flat_map(|automaton| automaton.find_iter(text)) {
            let at = found.pattern().as_usize();
            let at = match &self.plain {
                Some((_, places)) if !special => places[at],
                _ => at,
            };
            let token = &self.tokens[at];
            let (mut start, mut end) = (found.start(), found.end());
            // A neighbour may have taken white space that this token begins with.
            if start < from || (token.single_word && !stands_alone(text, start, end)) {
                continue;
            }
            if token.strip_left {
                start = from + text[from..start].trim_end().len();
            }
            if token.strip_right {
                end = text.len() - text[end..].trim_start().len();
            }
            if from < start {
                parts.push(Part::Text(&text[from..start]));
            }
            parts.push(Part::Token(token.id));
            from = end;
        }
        if from < text.len() {
            parts.push(Part::Text(&text[from..]));
        }
        parts
    }
}

fn automaton<'a>(
    texts: impl ExactSizeIterator<Item = &'a String>,
) -> Result<Option<AhoCorasick>, TokenizerError> {
    if texts.len() == 0 {
        return Ok(None);
    }
    let built = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
    built.map(Some).map_err(|error| TokenizerError::Malformed {
        what: "the list of added tokens".into(),
        seen: error.to_string(),
        wanted: "at most a few thousand short texts",
    })
}

fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    !text[..start].chars().next_back().is_some_and(is_word)
        && !text[end..].chars().next().is_some_and(is_word)
}
