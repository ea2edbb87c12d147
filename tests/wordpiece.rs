//! WordPiece against the Python `tokenizers` package: hostile texts by a tiny vocabulary with and without case, by
//! MiniLM's own, and every single character. The references are written by `golden/wordpiece.py`.
#![allow(clippy::unwrap_used)]

use portolan::fetch::cache_folder;
use portolan::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json_file(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn tokenizer(json: &Value) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_json(json.to_string().as_bytes(), None)
}

/// Every row of the reference, in every form.
fn check(tokenizer: &Tokenizer, name: &str) {
    let reference = json_file("wordpiece-encodings.json");
    let rows = reference[name].as_array().unwrap();
    assert!(rows.len() >= 30, "the reference for {name} is too short");
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let special = ids(&row["special"]);
        let encoded = tokenizer.encode(text, false).unwrap();
        assert_eq!(encoded, ids(&row["plain"]), "{name}: plain {text:?}");
        let encoded = tokenizer.encode_with_special(text, false).unwrap();
        assert_eq!(encoded, special, "{name}: special {text:?}");
        let around = tokenizer.encode_with_special(text, true).unwrap();
        assert_eq!(around, ids(&row["around"]), "{name}: around {text:?}");
        let decoded = tokenizer.decode(&special).unwrap();
        assert_eq!(decoded, row["decoded"].as_str().unwrap(), "{name}: decode {text:?}");
        let shown = tokenizer.decode_with_special(&special).unwrap();
        assert_eq!(shown, row["decoded_special"].as_str().unwrap(), "{name}: decode all {text:?}");
    }
}

/// The tiny vocabulary with other steps around it, as `wordpiece.py` makes it.
fn cased() -> Value {
    let mut file = json_file("tiny-wordpiece.json");
    let normalizer = json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": false,
        "strip_accents": null, "lowercase": false});
    file["normalizer"] = normalizer;
    file["post_processor"] = json!({"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]});
    file["decoder"]["cleanup"] = json!(false);
    file
}

#[test]
fn an_uncased_vocabulary_gives_the_reference_ids() {
    check(&Tokenizer::from_file(golden("tiny-wordpiece.json")).unwrap(), "uncased");
}

#[test]
fn a_cased_vocabulary_gives_the_reference_ids() {
    check(&tokenizer(&cased()).unwrap(), "cased");
}

#[test]
fn the_real_vocabulary_gives_the_reference_ids() {
    const FOLDER: &str = "all-MiniLM-L6-v2";
    let folders = [std::env::var_os("PORTOLAN_MODEL_DIR").map(PathBuf::from), cache_folder(None).ok()];
    let files = folders.into_iter().flatten().map(|folder| folder.join(FOLDER).join("tokenizer.json"));
    let Some(file) = files.into_iter().find(|file| file.is_file()) else {
        // Not by `eprintln!`, which the test runner keeps back.
        let mut terminal = std::io::stderr();
        return writeln!(terminal, "SKIPPED: no folder {FOLDER}; run `portolan fetch minilm`").unwrap();
    };
    check(&Tokenizer::from_file(file).unwrap(), "minilm");
}

#[test]
fn every_character_is_dropped_splits_or_stays_as_in_the_reference() {
    let reference = &json_file("wordpiece-encodings.json")["characters"];
    let tokens = reference["tokens"].as_array().unwrap();
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_str().unwrap().into(), id.into())).collect();
    let mut file = json_file("tiny-wordpiece.json");
    file["model"]["vocab"] = vocab.into();
    file["added_tokens"] = json!([]);
    file["post_processor"] = Value::Null;
    let tokenizer = tokenizer(&file).unwrap();
    let (mut seen, mut differ) = (0, Vec::new());
    for run in reference["runs"].as_array().unwrap() {
        let (first, last) = (run[0].as_u64().unwrap() as u32, run[1].as_u64().unwrap() as u32);
        let want = ids(&run[2]);
        for character in (first..=last).filter_map(char::from_u32) {
            let got = tokenizer.encode(&format!("a{character}b"), false).unwrap();
            if got != want {
                differ.push(format!("U+{:04X}: {got:?}, not {want:?}", u32::from(character)));
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 0x11_0000 - 0x800, "all characters there are");
    assert!(differ.is_empty(), "{} differ: {:#?}", differ.len(), &differ[..differ.len().min(40)]);
}

/// A change to a file, and what its refusal names.
type Damage = (fn(&mut Value), &'static str);

#[test]
fn damaged_and_hostile_files_are_refused_by_name() {
    let refused = |change: fn(&mut Value)| {
        let mut file = json_file("tiny-wordpiece.json");
        change(&mut file);
        tokenizer(&file).unwrap_err().to_string()
    };
    let cases: [Damage; 9] = [
        (|f| f["model"]["unk_token"] = json!("[NONE]"), "[NONE]"),
        (|f| f["model"]["unk_token"] = Value::Null, "model.unk_token"),
        (|f| f["model"]["continuing_subword_prefix"] = Value::Null, "continuing_subword_prefix"),
        // A word of so many characters would be looked up for hours.
        (|f| f["model"]["max_input_chars_per_word"] = json!(1u64 << 40), "limit is 1024"),
        (|f| f["model"]["max_input_chars_per_word"] = json!("many"), "max_input_chars_per_word"),
        (|f| f["normalizer"]["lowercase"] = json!("yes"), "normalizer.lowercase"),
        (|f| f["normalizer"]["strip_accents"] = json!(1), "normalizer.strip_accents"),
        (|f| f["decoder"] = Value::Null, "decoder"),
        (|f| f["post_processor"] = json!({"type": "BertProcessing", "cls": ["[CLS]", 999_999]}), "999999"),
    ];
    for (change, named) in cases {
        let error = refused(change);
        assert!(error.contains(named), "{error}");
    }
}

proptest! {
    /// No text is too strange, and every piece that is given is of the vocabulary.
    #[test]
    fn any_text_is_encoded(text in any::<String>()) {
        static TINY: std::sync::OnceLock<[Tokenizer; 2]> = std::sync::OnceLock::new();
        let tiny = TINY.get_or_init(|| {
            [tokenizer(&json_file("tiny-wordpiece.json")).unwrap(), tokenizer(&cased()).unwrap()]
        });
        for tokenizer in tiny {
            let ids = tokenizer.encode(&text, true).unwrap();
            prop_assert!(ids.len() >= 2 && ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            prop_assert!(tokenizer.decode(&ids).is_ok());
        }
    }
}
