//! Byte-pair encoding: merges neighbouring symbols of one piece of text, best pair first, until none is left.
//! The one model behind every tokenizer here; what a piece is, and what its characters mean, is `split.rs`'s.
//! The vocabulary is in `vocab.rs`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::error::{TokenizerError, excerpt};
use super::split::byte_of;
use super::vocab::Vocab;

/// Which pairs merge, and in which order.
#[derive(Debug)]
pub(crate) enum MergeRule {
    /// `(left, right)` to `(rank, merged)`: the lowest rank merges first.
    Ranks(HashMap<(u32, u32), (u32, u32)>),
    /// Any pair whose joined text is a token merges, the highest score first (SentencePiece's BPE).
    Scores(Vec<f32>),
}

impl MergeRule {
    /// Builds the rank table from the file's list, whose order is the rank.
    pub(crate) fn from_ranked<'a>(
        vocab: &Vocab,
        merges: impl Iterator<Item = Result<(&'a str, &'a str), TokenizerError>>,
    ) -> Result<Self, TokenizerError> {
        let mut table = HashMap::new();
        let mut joined = String::new();
        for (rank, merge) in merges.enumerate() {
            let (left, right) = merge?;
            let id = |token: &str| {
                vocab
                    .id(token)
                    .ok_or_else(|| TokenizerError::UnknownMergeToken { rank, token: excerpt(token) })
            };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            let order = u32::try_from(rank).map_err(|_| TokenizerError::TooLarge {
                what: "the number of merges",
                seen: rank,
                limit: u32::MAX as usize,
            })?;
            table.insert((id(left)?, id(right)?), (order, id(&joined)?));
        }
        Ok(Self::Ranks(table))
    }

    /// The order of a pair (lower first) and the token it becomes.
    fn of(&self, vocab: &Vocab, left: u32, right: u32, joined: &mut String) -> Option<(u32, u32)> {
        match self {
            Self::Ranks(table) => table.get(&(left, right)).copied(),
            Self::Scores(scores) => {
                joined.clear();
                joined.push_str(vocab.text(left)??);
                joined.push_str(vocab.text(right)??);
                let id = vocab.id(joined)?;
                Some((descending(*scores.get(id as usize)?), id))
            }
        }
    }
}

/// A key that sorts finite scores from high to low: the bits of a float sort like its magnitude.
fn descending(score: f32) -> u32 {
    let bits = score.to_bits();
    if score.is_sign_negative() { bits } else { !bits & 0x7fff_ffff }
}

/// The model: how one piece of text becomes ids.
#[derive(Debug)]
pub(crate) struct Bpe {
    pub(crate) rule: MergeRule,
    /// The token for characters that have none.
    pub(crate) unknown: Option<u32>,
    /// Neighbouring unknown characters become one unknown token.
    pub(crate) fuse_unknown: bool,
    /// Characters without a token become their UTF-8 bytes `<0x00>` … `<0xFF>`.
    pub(crate) byte_fallback: bool,
    /// A piece that is a token is that token, whatever the merges say.
    pub(crate) whole_piece_first: bool,
    /// Characters stand for bytes (GPT-2's alphabet); only error messages need to know.
    pub(crate) byte_level: bool,
}

/// One symbol of the piece, in a doubly linked list over a vector.
struct Symbol {
    id: u32,
    prev: usize,
    next: usize,
    alive: bool,
}

/// The end of the list, on either side.
const NONE: usize = usize::MAX;

impl Bpe {
    /// Appends the ids of `piece` to `out`.
    pub(crate) fn encode(
        &self,
        vocab: &Vocab,
        piece: &str,
        out: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        if self.whole_piece_first
            && let Some(id) = vocab.id(piece)
        {
            out.push(id);
            return Ok(());
        }
        let mut symbols = self.symbols(vocab, piece)?;
        self.merge(vocab, &mut symbols);
        out.extend(symbols.iter().filter(|symbol| symbol.alive).map(|symbol| symbol.id));
        Ok(())
    }

    /// The characters of `piece` as the symbols merging starts from.
    fn symbols(&self, vocab: &Vocab, piece: &str) -> Result<Vec<Symbol>, TokenizerError> {
        let mut ids: Vec<u32> = Vec::with_capacity(piece.len());
        let mut after_unknown = false;
        for (at, character) in piece.char_indices() {
            let text = &piece[at..at + character.len_utf8()];
            if let Some(id) = vocab.id(text) {
                ids.push(id);
                after_unknown = false;
                continue;
            }
            if self.byte_fallback {
                let bytes: Option<Vec<u32>> =
                    text.bytes().map(|byte| vocab.id(&format!("<0x{byte:02X}>"))).collect();
                if let Some(bytes) = bytes {
                    ids.extend(bytes);
                    after_unknown = false;
                    continue;
                }
            }
            match self.unknown {
                Some(_) if after_unknown && self.fuse_unknown => {}
                Some(unknown) => ids.push(unknown),
                None => return Err(TokenizerError::Unencodable { what: self.describe(character) }),
            }
            after_unknown = true;
        }
        let last = ids.len().wrapping_sub(1);
        let link = |(at, id): (usize, u32)| Symbol {
            id,
            prev: if at == 0 { NONE } else { at - 1 },
            next: if at == last { NONE } else { at + 1 },
            alive: true,
        };
        Ok(ids.into_iter().enumerate().map(link).collect())
    }

    fn describe(&self, character: char) -> String {
        match byte_of(character) {
            Some(byte) if self.byte_level => format!("byte 0x{byte:02x}"),
            _ => format!("character U+{:04X}", u32::from(character)),
        }
    }

    /// Merges pairs in order, the leftmost first among equals, in `n log n` for `n` symbols.
    fn merge(&self, vocab: &Vocab, symbols: &mut [Symbol]) {
        let mut joined = String::new();
        let mut queue = BinaryHeap::new();
        let mut offer = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], at: usize| {
            let Some(left) = symbols.get(at) else { return };
            let Some(right) = symbols.get(left.next) else { return };
            if let Some((order, merged)) = self.rule.of(vocab, left.id, right.id, &mut joined) {
                queue.push(Reverse((order, at, left.id, right.id, merged)));
            }
        };
        for at in 0..symbols.len() {
            offer(&mut queue, symbols, at);
        }
        while let Some(Reverse((_, at, left, right, merged))) = queue.pop() {
            let next = symbols[at].next;
            // An entry is stale once either side has merged with something else.
            let fresh = symbols[at].alive
                && symbols[at].id == left
                && symbols.get(next).is_some_and(|symbol| symbol.id == right);
            if !fresh {
                continue;
            }
            let after = symbols[next].next;
            symbols[next].alive = false;
            symbols[at].id = merged;
            symbols[at].next = after;
            if let Some(symbol) = symbols.get_mut(after) {
                symbol.prev = at;
            }
            let before = symbols[at].prev;
            offer(&mut queue, symbols, before);
            offer(&mut queue, symbols, at);
        }
    }
}
