//! A tokenizer from the vocabulary inside a GGUF file: tokens, their types, merges or scores, and a name for the
//! splitting rules. Kept apart from the file reader (`load/gguf`): plain lists come in, so that hostile ones are easy
//! to write down. The engine is in `mod.rs`.

use super::added::AddedToken;
use super::bpe::{Bpe, MergeRule};
use super::error::{TokenizerError, excerpt};
use super::split::{GPT2, LLAMA3, Normalize, QWEN2, Split, compile};
use super::vocab::{MAX_TOKENS, Vocab};
use super::{Decoder, Model, Tokenizer};

/// What orders the merges: `tokenizer.ggml.merges` of a `gpt2` vocabulary, `tokenizer.ggml.scores` of a `llama` one.
#[derive(Clone, Debug)]
pub enum GgufMerges {
    /// Two tokens and a space between them, the first merge first.
    Ranked(Vec<String>),
    /// One score for each token; the pair that becomes the best-scored token merges first.
    Scores(Vec<f32>),
}

/// The tokenizer fields of a GGUF file, each under `tokenizer.ggml.` there.
#[derive(Clone, Debug)]
pub struct GgufVocab {
    /// `tokens`: the text of each id.
    pub tokens: Vec<String>,
    /// `merges` or `scores`.
    pub merges: GgufMerges,
    /// `token_type`: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; all normal where absent.
    pub types: Option<Vec<i32>>,
    /// `pre`: the name of the splitting rules.
    pub pre: Option<String>,
    /// `bos_token_id`.
    pub bos: Option<u64>,
    /// `eos_token_id`.
    pub eos: Option<u64>,
    /// `eot_token_id`.
    pub eot: Option<u64>,
    /// `unknown_token_id`.
    pub unknown: Option<u64>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`.
    pub add_space_prefix: Option<bool>,
}

impl GgufVocab {
    /// A vocabulary with the two fields every file has.
    pub fn new(tokens: Vec<String>, merges: GgufMerges) -> Self {
        Self {
            tokens,
            merges,
            types: None,
            pre: None,
            bos: None,
            eos: None,
            eot: None,
            unknown: None,
            add_bos: None,
            add_eos: None,
            add_space_prefix: None,
        }
    }
}

/// The splitting rules a name stands for.
struct Rules {
    digits: bool,
    pattern: &'static str,
    whole_piece_first: bool,
    add_bos: bool,
}

const SUPPORTED: &str = "gpt-2 (default, olmo, jais, phi-2), smollm (starcoder, refact, command-r, exaone, codeshell), \
llama-bpe (llama3, llama-v3, falcon3, smaug-bpe, dbrx), qwen2 (stablelm2, deepseek-r1-qwen)";

/// The rules by `tokenizer.ggml.pre`.
fn rules(pre: &str) -> Option<Rules> {
    let (digits, pattern, llama) = match pre {
        "default" | "gpt-2" | "olmo" | "jais" | "phi-2" => (false, GPT2, false),
        "smollm" | "starcoder" | "refact" | "command-r" | "exaone" | "codeshell" => (true, GPT2, false),
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => (false, LLAMA3, true),
        "smaug-bpe" | "dbrx" => (false, LLAMA3, false),
        "qwen2" | "stablelm2" | "deepseek-r1-qwen" => (false, QWEN2, false),
        _ => return None,
    };
    Some(Rules { digits, pattern, whole_piece_first: llama, add_bos: llama })
}

/// The types of `token_type` that matter here.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

impl Tokenizer {
    /// Builds the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// A typed [`TokenizerError`] for every vocabulary that is empty, ambiguous, inconsistent or of an unknown kind.
    pub fn from_gguf(file: &GgufVocab) -> Result<Self, TokenizerError> {
        let vocab = read_tokens(&file.tokens)?;
        let len = vocab.len();
        let types = match &file.types {
            Some(types) if types.len() != len => return Err(unequal("token_type", types.len())),
            Some(types) => types.as_slice(),
            None => &[],
        };
        let added = added_tokens(&file.tokens, types);
        let optional = |what, id: Option<u64>| id.map(|id| vocab.check(what, id)).transpose();
        let (bos, eos) = (optional("bos_token_id", file.bos)?, optional("eos_token_id", file.eos)?);
        let (eot, unknown) =
            (optional("eot_token_id", file.eot)?, optional("unknown_token_id", file.unknown)?);
        let (mut tokenizer, add_bos) = match &file.merges {
            GgufMerges::Ranked(merges) => ranked(vocab, merges, file.pre.as_deref(), added)?,
            GgufMerges::Scores(scores) => (scored(vocab, scores, file, unknown, added)?, true),
        };
        tokenizer.guess_end_of_turn();
        tokenizer.marks.bos = bos;
        tokenizer.marks.eos = eos;
        tokenizer.marks.eot = eot.or(tokenizer.marks.eot);
        tokenizer.prefix.extend(bos.filter(|_| file.add_bos.unwrap_or(add_bos)));
        tokenizer.suffix.extend(eos.filter(|_| file.add_eos.unwrap_or(false)));
        Ok(tokenizer)
    }
}

fn unequal(what: &str, seen: usize) -> TokenizerError {
    TokenizerError::Malformed {
        what: format!("the length of {what}"),
        seen: seen.to_string(),
        wanted: "one entry for each token",
    }
}

fn read_tokens(tokens: &[String]) -> Result<Vocab, TokenizerError> {
    if tokens.is_empty() {
        return Err(TokenizerError::Empty);
    }
    if tokens.len() > MAX_TOKENS {
        let seen = tokens.len();
        return Err(TokenizerError::TooLarge { what: "the number of tokens", seen, limit: MAX_TOKENS });
    }
    let mut vocab = Vocab::default();
    for (id, token) in tokens.iter().enumerate() {
        vocab.insert(id as u64, token)?;
    }
    Ok(vocab)
}

fn added_tokens(tokens: &[String], types: &[i32]) -> Vec<AddedToken> {
    let whole =
        |&(_, (_, kind)): &(usize, (&String, &i32))| matches!(*kind, UNKNOWN | CONTROL | USER_DEFINED);
    let token = |(id, (text, kind)): (usize, (&String, &i32))| AddedToken {
        id: id as u32,
        text: text.clone(),
        special: *kind != USER_DEFINED,
        strip_left: false,
        strip_right: false,
        single_word: false,
        normalized: false,
    };
    tokens.iter().zip(types).enumerate().filter(whole).map(token).collect()
}

fn ranked(
    vocab: Vocab,
    merges: &[String],
    pre: Option<&str>,
    added: Vec<AddedToken>,
) -> Result<(Tokenizer, bool), TokenizerError> {
    let pre = pre.unwrap_or("default");
    let rules = rules(pre).ok_or_else(|| TokenizerError::Unsupported {
        what: "the splitting rule tokenizer.ggml.pre",
        seen: excerpt(pre),
        supported: SUPPORTED,
    })?;
    let pairs = merges.iter().enumerate().map(|(rank, merge)| {
        // A token may begin with a space only in damaged files: the first space divides.
        merge.split_once(' ').ok_or_else(|| TokenizerError::Malformed {
            what: format!("merge {rank}"),
            seen: format!("`{}`", excerpt(merge)),
            wanted: "two tokens and a space between them",
        })
    });
    let bpe = Bpe {
        rule: MergeRule::from_ranked(&vocab, pairs)?,
        unknown: None,
        fuse_unknown: false,
        byte_fallback: false,
        whole_piece_first: rules.whole_piece_first,
        byte_level: true,
    };
    let mut split = Vec::new();
    if rules.digits {
        split.push(Split::Digits { each: true });
    }
    split.push(Split::ByteLevel { prefix_space: false, regex: Some(compile(rules.pattern)?) });
    let tokenizer =
        Tokenizer::assemble(vocab, Model::Bpe(bpe), Vec::new(), split, added, Decoder::ByteLevel)?;
    Ok((tokenizer, rules.add_bos))
}

fn scored(
    vocab: Vocab,
    scores: &[f32],
    file: &GgufVocab,
    unknown: Option<u32>,
    added: Vec<AddedToken>,
) -> Result<Tokenizer, TokenizerError> {
    if scores.len() != vocab.len() {
        return Err(unequal("scores", scores.len()));
    }
    if let Some(at) = scores.iter().position(|score| score.is_nan()) {
        return Err(TokenizerError::Malformed {
            what: format!("the score of token {at}"),
            seen: "not a number".into(),
            wanted: "a number",
        });
    }
    let bpe = Bpe {
        rule: MergeRule::Scores(scores.to_vec()),
        unknown,
        fuse_unknown: false,
        byte_fallback: true,
        whole_piece_first: false,
        byte_level: false,
    };
    let prefix = file.add_space_prefix.unwrap_or(true);
    let mut normalize = vec![Normalize::Replace(" ".into(), "▁".into())];
    if prefix {
        normalize.insert(0, Normalize::Prepend("▁".into()));
    }
    Tokenizer::assemble(
        vocab,
        Model::Bpe(bpe),
        normalize,
        Vec::new(),
        added,
        Decoder::Sentence { strip_first: prefix },
    )
}
