//! A tokenizer from `tokenizer.json`: the parts of that format that byte-pair-encoding language models and BERT's
//! WordPiece use. Padding and truncation, which it may ask for, are the caller's.
//! Anything else in the file is refused by name; guessing would give silently different ids.
//! Read by hand from JSON values, since the format's own reader panics on inconsistent files. The engine is in `mod.rs`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::added::AddedToken;
use super::bpe::{Bpe, MergeRule};
use super::error::{TokenizerError, excerpt};
use super::split::{GPT2, Matches, NormalForm, Normalize, Prepend, Split, compile};
use super::vocab::{MAX_TOKENS, Vocab};
use super::wordpiece::{BertNormalize, BertSplit, MAX_WORD_CHARS, WordPiece};
use super::{Decoder, Model, Tokenizer};

/// The largest file read: ten times the largest in use.
const MAX_FILE_BYTES: u64 = 256 << 20;

type Result<T> = core::result::Result<T, TokenizerError>;

impl Tokenizer {
    /// Reads `tokenizer.json`, and `tokenizer_config.json` beside it where there is one (it names the begin and end tokens).
    ///
    /// # Errors
    /// [`TokenizerError::Io`] and [`TokenizerError::Json`] for the file, the others for what is in it.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let tokenizer = read(path)?;
        let config = path.with_file_name("tokenizer_config.json");
        let config = if config.is_file() { Some(read(&config)?) } else { None };
        Self::from_json(&tokenizer, config.as_deref())
    }

    /// Builds the tokenizer from the text of `tokenizer.json` and, where there is one, of `tokenizer_config.json`.
    ///
    /// # Errors
    /// A typed [`TokenizerError`] for text that is not JSON, for an inconsistent vocabulary and for unsupported parts.
    pub fn from_json(tokenizer: &[u8], config: Option<&[u8]>) -> Result<Self> {
        let file = parse("tokenizer.json", tokenizer)?;
        let config = config.map(|text| parse("tokenizer_config.json", text)).transpose()?;
        let model = &file["model"];
        let mut vocab = read_vocab(model)?;
        let added = read_added(&file["added_tokens"], &mut vocab)?;
        let mut split = Vec::new();
        read_split(&file["pre_tokenizer"], &mut split)?;
        let byte_level = split.iter().any(|step| matches!(step, Split::ByteLevel { .. }));
        let engine = match model["type"].as_str() {
            Some("WordPiece") => Model::WordPiece(read_wordpiece(model, &vocab)?),
            _ => Model::Bpe(read_bpe(model, &vocab, byte_level)?),
        };
        let mut normalize = Vec::new();
        read_normalize(&file["normalizer"], &mut normalize)?;
        let decoder = read_decoder(&file["decoder"], byte_level)?;
        let mut tokenizer = Self::assemble(vocab, engine, normalize, split, added, decoder)?;
        read_template(&file["post_processor"], &mut tokenizer)?;
        tokenizer.guess_end_of_turn();
        if let Some(config) = config {
            tokenizer.marks.bos = named_token(&config["bos_token"], &tokenizer.vocab);
            tokenizer.marks.eos = named_token(&config["eos_token"], &tokenizer.vocab);
        }
        Ok(tokenizer)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| TokenizerError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let limit = MAX_FILE_BYTES as usize;
        return Err(TokenizerError::TooLarge { what: "the size of the file", seen: bytes.len(), limit });
    }
    Ok(bytes)
}

fn parse(file: &str, text: &[u8]) -> Result<Value> {
    serde_json::from_slice(text)
        .map_err(|error| TokenizerError::Json { file: file.to_owned(), why: error.to_string() })
}

fn unsupported(what: &'static str, seen: &Value, supported: &'static str) -> TokenizerError {
    let seen = match seen {
        Value::String(text) => excerpt(text),
        other => excerpt(&other.to_string()),
    };
    TokenizerError::Unsupported { what, seen, supported }
}

fn malformed(what: impl Into<String>, seen: &Value, wanted: &'static str) -> TokenizerError {
    TokenizerError::Malformed { what: what.into(), seen: excerpt(&seen.to_string()), wanted }
}

fn text<'v>(value: &'v Value, what: &'static str) -> Result<&'v str> {
    value.as_str().ok_or_else(|| malformed(what, value, "a text"))
}

/// A flag that is off where absent.
fn flag(value: &Value, what: &'static str) -> Result<bool> {
    match value {
        Value::Null => Ok(false),
        Value::Bool(flag) => Ok(*flag),
        other => Err(malformed(what, other, "true or false")),
    }
}

fn list<'v>(value: &'v Value, what: &'static str) -> Result<&'v [Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| malformed(what, value, "a list"))
}

fn read_vocab(model: &Value) -> Result<Vocab> {
    // Old files leave the type out; a list of merges says as much.
    let kind = &model["type"];
    if kind != "BPE" && kind != "WordPiece" && !(kind.is_null() && model["merges"].is_array()) {
        return Err(unsupported("the model type", kind, "BPE, WordPiece"));
    }
    let tokens = model["vocab"]
        .as_object()
        .ok_or_else(|| malformed("model.vocab", &model["vocab"], "an object from token to id"))?;
    if tokens.is_empty() {
        return Err(TokenizerError::Empty);
    }
    let mut vocab = Vocab::default();
    for (token, id) in tokens {
        vocab.insert(id.as_u64().ok_or_else(|| malformed("a token id", id, "a number from 0"))?, token)?;
    }
    // Ids may have holes, but a handful of tokens must not reserve millions of places.
    if vocab.len() > 2 * tokens.len() + (1 << 16) {
        let limit = 2 * tokens.len() + (1 << 16);
        return Err(TokenizerError::TooLarge { what: "the highest token id", seen: vocab.len() - 1, limit });
    }
    Ok(vocab)
}

fn read_wordpiece(model: &Value, vocab: &Vocab) -> Result<WordPiece> {
    let unknown = text(&model["unk_token"], "model.unk_token")?;
    let prefix = text(&model["continuing_subword_prefix"], "model.continuing_subword_prefix")?;
    let longest = &model["max_input_chars_per_word"];
    let max_chars = longest.as_u64().map_or(usize::MAX, |chars| usize::try_from(chars).unwrap_or(usize::MAX));
    if max_chars > MAX_WORD_CHARS {
        let what = "model.max_input_chars_per_word";
        return match longest.is_u64() {
            true => Err(TokenizerError::TooLarge { what, seen: max_chars, limit: MAX_WORD_CHARS }),
            false => Err(malformed(what, longest, "a number from 0")),
        };
    }
    let unknown = vocab.id(unknown).ok_or_else(|| TokenizerError::Missing {
        what: format!("the unknown token `{}` in the vocabulary", excerpt(unknown)),
    })?;
    Ok(WordPiece { unknown, prefix: prefix.to_owned(), max_chars })
}

fn read_bpe(model: &Value, vocab: &Vocab, byte_level: bool) -> Result<Bpe> {
    if model["dropout"].as_f64().is_some_and(|rate| rate != 0.0) {
        return Err(unsupported("model.dropout", &model["dropout"], "none: encoding must not be random"));
    }
    for what in ["model.continuing_subword_prefix", "model.end_of_word_suffix"] {
        let value = &model[&what["model.".len()..]];
        if !value.is_null() && value != "" {
            return Err(unsupported(what, value, "none"));
        }
    }
    let merges = list(&model["merges"], "model.merges")?;
    let pairs = merges.iter().map(|merge| {
        let pair = match merge {
            Value::String(pair) => pair.split_once(' '),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => Some((left.as_str(), right.as_str())),
                _ => None,
            },
            _ => None,
        };
        pair.ok_or_else(|| malformed("a merge", merge, "two tokens"))
    });
    let unknown = match &model["unk_token"] {
        Value::Null => None,
        token => {
            let token = text(token, "model.unk_token")?;
            Some(vocab.id(token).ok_or_else(|| TokenizerError::Missing {
                what: format!("the unknown token `{}` in the vocabulary", excerpt(token)),
            })?)
        }
    };
    Ok(Bpe {
        rule: MergeRule::from_ranked(vocab, pairs)?,
        unknown,
        fuse_unknown: flag(&model["fuse_unk"], "model.fuse_unk")?,
        byte_fallback: flag(&model["byte_fallback"], "model.byte_fallback")?,
        whole_piece_first: flag(&model["ignore_merges"], "model.ignore_merges")?,
        byte_level,
    })
}

fn read_added(tokens: &Value, vocab: &mut Vocab) -> Result<Vec<AddedToken>> {
    if tokens.is_null() {
        return Ok(Vec::new());
    }
    let tokens = list(tokens, "added_tokens")?;
    if tokens.len() > MAX_TOKENS {
        let seen = tokens.len();
        return Err(TokenizerError::TooLarge { what: "the number of added tokens", seen, limit: MAX_TOKENS });
    }
    let limit = 2 * (vocab.len() + tokens.len()) as u64 + (1 << 16);
    let mut added = Vec::with_capacity(tokens.len());
    for token in tokens {
        let content = text(&token["content"], "added_tokens.content")?;
        let id = token["id"].as_u64().filter(|&id| id < limit);
        let id =
            id.ok_or_else(|| malformed("added_tokens.id", &token["id"], "a number near the vocabulary"))?;
        added.push(AddedToken {
            id: vocab.insert(id, content)?,
            text: content.to_owned(),
            special: flag(&token["special"], "added_tokens.special")?,
            strip_left: flag(&token["lstrip"], "added_tokens.lstrip")?,
            strip_right: flag(&token["rstrip"], "added_tokens.rstrip")?,
            single_word: flag(&token["single_word"], "added_tokens.single_word")?,
            normalized: flag(&token["normalized"], "added_tokens.normalized")?,
        });
    }
    Ok(added)
}

fn read_normalize(value: &Value, out: &mut Vec<Normalize>) -> Result<()> {
    let step = match value["type"].as_str() {
        None if value.is_null() => return Ok(()),
        Some("Sequence") => {
            let steps = list(&value["normalizers"], "normalizer.normalizers")?;
            return steps.iter().try_for_each(|step| read_normalize(step, out));
        }
        Some("NFC") => Normalize::Form(NormalForm::Nfc),
        Some("NFD") => Normalize::Form(NormalForm::Nfd),
        Some("NFKC") => Normalize::Form(NormalForm::Nfkc),
        Some("NFKD") => Normalize::Form(NormalForm::Nfkd),
        Some("Lowercase") => Normalize::Lowercase,
        Some("Prepend") => Normalize::Prepend(text(&value["prepend"], "normalizer.prepend")?.to_owned()),
        Some("Replace") if value["pattern"]["String"].as_str().is_some_and(|from| !from.is_empty()) => {
            let from = text(&value["pattern"]["String"], "normalizer.pattern")?;
            Normalize::Replace(from.to_owned(), text(&value["content"], "normalizer.content")?.to_owned())
        }
        Some("BertNormalizer") => {
            let switch = |key: &str, what: &'static str| {
                value[key].as_bool().ok_or_else(|| malformed(what, &value[key], "true or false"))
            };
            let lowercase = switch("lowercase", "normalizer.lowercase")?;
            let accents = match value["strip_accents"].is_null() {
                true => lowercase,
                false => switch("strip_accents", "normalizer.strip_accents")?,
            };
            Normalize::Bert(BertNormalize::new(
                switch("clean_text", "normalizer.clean_text")?,
                switch("handle_chinese_chars", "normalizer.handle_chinese_chars")?,
                accents,
                lowercase,
            )?)
        }
        _ => {
            let supported =
                "Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace of a text, BertNormalizer";
            return Err(unsupported("a normalizer", value, supported));
        }
    };
    // A replacement that grows the text again and again would end in memory, not in an answer.
    const MAX_STEPS: usize = 16;
    if out.len() == MAX_STEPS {
        let seen = MAX_STEPS + 1;
        return Err(TokenizerError::TooLarge { what: "the number of normalizers", seen, limit: MAX_STEPS });
    }
    if let Normalize::Replace(from, to) = &step
        && to.len() > from.len().max(1) * 4
    {
        return Err(unsupported("a normalizer", value, "replacements at most four times as long"));
    }
    out.push(step);
    Ok(())
}

fn read_split(value: &Value, out: &mut Vec<Split>) -> Result<()> {
    let step = match value["type"].as_str() {
        None if value.is_null() => return Ok(()),
        Some("Sequence") => {
            let steps = list(&value["pretokenizers"], "pre_tokenizer.pretokenizers")?;
            return steps.iter().try_for_each(|step| read_split(step, out));
        }
        Some("Digits") => {
            Split::Digits { each: flag(&value["individual_digits"], "pre_tokenizer.individual_digits")? }
        }
        Some("ByteLevel") => {
            let regex = value["use_regex"].as_bool().unwrap_or(true);
            Split::ByteLevel {
                prefix_space: flag(&value["add_prefix_space"], "pre_tokenizer.add_prefix_space")?,
                regex: regex.then(|| compile(GPT2)).transpose()?,
            }
        }
        Some("Split") => {
            let regex = match (&value["pattern"]["Regex"], &value["pattern"]["String"]) {
                (Value::String(pattern), _) => compile(pattern)?,
                (_, Value::String(literal)) => compile(&fancy_regex::escape(literal))?,
                _ => {
                    return Err(malformed("pre_tokenizer.pattern", &value["pattern"], "a Regex or a String"));
                }
            };
            let matches = match value["behavior"].as_str() {
                Some("Isolated") => Matches::Isolated,
                Some("Removed") => Matches::Removed,
                Some("MergedWithPrevious") => Matches::MergedWithPrevious,
                Some("MergedWithNext") => Matches::MergedWithNext,
                _ => {
                    let supported = "Isolated, Removed, MergedWithPrevious, MergedWithNext";
                    return Err(unsupported("pre_tokenizer.behavior", &value["behavior"], supported));
                }
            };
            Split::Pattern { regex, matches, inverted: flag(&value["invert"], "pre_tokenizer.invert")? }
        }
        Some("Metaspace") => {
            let mut mark = value["replacement"].as_str().unwrap_or("▁").chars();
            let (Some(mark), None) = (mark.next(), mark.next()) else {
                return Err(malformed("pre_tokenizer.replacement", &value["replacement"], "one character"));
            };
            let prepend = match value["prepend_scheme"].as_str() {
                Some("always") | None => Prepend::Always,
                Some("first") => Prepend::First,
                Some("never") => Prepend::Never,
                _ => {
                    let scheme = &value["prepend_scheme"];
                    return Err(unsupported("pre_tokenizer.prepend_scheme", scheme, "always, first, never"));
                }
            };
            Split::Metaspace { mark, prepend, split: value["split"].as_bool().unwrap_or(true) }
        }
        Some("BertPreTokenizer") => Split::Bert(BertSplit::new()?),
        _ => {
            let supported = "Sequence, Digits, ByteLevel, Split, Metaspace, BertPreTokenizer";
            return Err(unsupported("a pre-tokenizer", value, supported));
        }
    };
    const MAX_STEPS: usize = 64;
    if out.len() == MAX_STEPS {
        let seen = MAX_STEPS + 1;
        return Err(TokenizerError::TooLarge {
            what: "the number of pre-tokenizers",
            seen,
            limit: MAX_STEPS,
        });
    }
    out.push(step);
    Ok(())
}

fn read_decoder(value: &Value, byte_level: bool) -> Result<Decoder> {
    let supported =
        "ByteLevel, Metaspace, WordPiece, or a Sequence of Replace `▁`, ByteFallback, Fuse, Strip one space";
    let refused = || unsupported("the decoder", value, supported);
    match value["type"].as_str() {
        Some("ByteLevel") => Ok(Decoder::ByteLevel),
        None if value.is_null() && byte_level => Ok(Decoder::ByteLevel),
        Some("WordPiece") => Ok(Decoder::WordPiece {
            prefix: text(&value["prefix"], "decoder.prefix")?.to_owned(),
            cleanup: flag(&value["cleanup"], "decoder.cleanup")?,
        }),
        Some("Metaspace") if value["replacement"] == "▁" => {
            Ok(Decoder::Sentence { strip_first: value["prepend_scheme"] != "never" })
        }
        Some("Sequence") => {
            let mut strip_first = false;
            for step in list(&value["decoders"], "decoder.decoders")? {
                match step["type"].as_str() {
                    Some("ByteLevel") if step == &value["decoders"][0] => return Ok(Decoder::ByteLevel),
                    Some("Replace") if step["pattern"]["String"] == "▁" && step["content"] == " " => {}
                    Some("ByteFallback" | "Fuse") => {}
                    Some("Strip") if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => {
                        strip_first = true;
                    }
                    _ => return Err(refused()),
                }
            }
            Ok(Decoder::Sentence { strip_first })
        }
        _ => Err(refused()),
    }
}

/// What stands around a single text, as ids.
fn read_template(value: &Value, tokenizer: &mut Tokenizer) -> Result<()> {
    match value["type"].as_str() {
        None if value.is_null() => Ok(()),
        Some("ByteLevel") => Ok(()),
        Some("Sequence") => list(&value["processors"], "post_processor.processors")?
            .iter()
            .try_for_each(|step| read_template(step, tokenizer)),
        Some("TemplateProcessing") => {
            let mut before = true;
            for piece in list(&value["single"], "post_processor.single")? {
                if piece["Sequence"].is_object() {
                    before = false;
                    continue;
                }
                let name = text(&piece["SpecialToken"]["id"], "post_processor.single.id")?;
                for id in list(&value["special_tokens"][name]["ids"], "post_processor.special_tokens.ids")? {
                    let number = id.as_u64().ok_or_else(|| malformed("a token id", id, "a number from 0"))?;
                    let id = tokenizer.vocab.check("a token of the post-processor", number)?;
                    if before { tokenizer.prefix.push(id) } else { tokenizer.suffix.push(id) }
                }
            }
            Ok(())
        }
        Some("BertProcessing") => {
            for (end, what) in [("cls", "post_processor.cls"), ("sep", "post_processor.sep")] {
                let id = &value[end][1];
                let number = id.as_u64().ok_or_else(|| malformed(what, &value[end], "a token and its id"))?;
                let id = tokenizer.vocab.check("a token of the post-processor", number)?;
                if end == "cls" { tokenizer.prefix.push(id) } else { tokenizer.suffix.push(id) }
            }
            Ok(())
        }
        _ => {
            let supported = "Sequence, ByteLevel, TemplateProcessing, BertProcessing";
            Err(unsupported("the post-processor", value, supported))
        }
    }
}

/// A token of `tokenizer_config.json`: its text, or an object that holds it.
fn named_token(value: &Value, vocab: &Vocab) -> Option<u32> {
    vocab.id(value.as_str().or_else(|| value["content"].as_str())?)
}
