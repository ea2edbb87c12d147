//! The tokenizer against the Python `tokenizers` package: three tiny vocabularies and SmolLM2's own.
//! The references are written by `golden/tokenizer.py`. Hostile vocabularies are in `tokenizer_hostile.rs`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use portolan::tokenizer::{GgufMerges, GgufVocab, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// The fields a GGUF converter would write for a byte-level `tokenizer.json`.
fn as_gguf(name: &str, pre: &str) -> GgufVocab {
    let file = json(name);
    let vocab = file["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (token, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let mut types = vec![1; tokens.len()];
    for token in file["added_tokens"].as_array().unwrap() {
        types[token["id"].as_u64().unwrap() as usize] = 3;
    }
    let pair = |merge: &Value| format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
    let merges = file["model"]["merges"].as_array().unwrap().iter().map(pair).collect();
    GgufVocab {
        types: Some(types),
        pre: Some(pre.into()),
        bos: Some(0),
        ..GgufVocab::new(tokens, GgufMerges::Ranked(merges))
    }
}

/// Every row of the reference, in every form.
fn check(tokenizer: &Tokenizer, name: &str) {
    let reference = json("tokenizer-encodings.json");
    let rows = reference[name].as_array().unwrap();
    assert!(rows.len() >= 25, "the reference for {name} is too short");
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let special = ids(&row["special"]);
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&row["plain"]), "{name}: plain {text:?}");
        assert_eq!(tokenizer.encode_with_special(text, false).unwrap(), special, "{name}: special {text:?}");
        assert_eq!(
            tokenizer.encode_with_special(text, true).unwrap(),
            ids(&row["around"]),
            "{name}: around {text:?}"
        );
        assert_eq!(
            tokenizer.decode(&special).unwrap(),
            row["decoded"].as_str().unwrap(),
            "{name}: decode {text:?}"
        );
        let shown = tokenizer.decode_with_special(&special).unwrap();
        assert_eq!(shown, row["decoded_special"].as_str().unwrap(), "{name}: decode all {text:?}");
    }
}

#[test]
fn a_tokenizer_json_gives_the_reference_ids() {
    check(&Tokenizer::from_file(golden("tiny-tokenizer.json")).unwrap(), "smollm");
}

#[test]
fn a_llama3_style_tokenizer_json_gives_the_reference_ids() {
    check(&Tokenizer::from_file(golden("tiny-tokenizer-llama3.json")).unwrap(), "llama3");
}

#[test]
fn a_llama2_style_tokenizer_json_gives_the_reference_ids() {
    check(&Tokenizer::from_file(golden("tiny-tokenizer-llama2.json")).unwrap(), "llama2");
}

#[test]
fn the_same_vocabulary_as_gguf_gives_the_same_ids() {
    check(&Tokenizer::from_gguf(&as_gguf("tiny-tokenizer.json", "smollm")).unwrap(), "smollm");
    check(&Tokenizer::from_gguf(&as_gguf("tiny-tokenizer-llama3.json", "llama-bpe")).unwrap(), "llama3");
}

#[test]
fn a_scored_vocabulary_merges_the_best_score_first_and_falls_back_to_bytes() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255u32).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "b", "c", "ab", "bc", "abc", "▁a"].map(String::from));
    let mut types = vec![1; tokens.len()];
    types[0] = 2;
    types[1..3].fill(3);
    types[3..259].fill(6);
    let mut scores = vec![0.0; tokens.len()];
    // bc before ab; abc cannot come from a + bc's rival ab + c once b is taken.
    scores[263..267].copy_from_slice(&[-2.0, -1.0, -3.0, -9.0]);
    let vocab = GgufVocab {
        types: Some(types),
        bos: Some(1),
        unknown: Some(0),
        ..GgufVocab::new(tokens, GgufMerges::Scores(scores))
    };
    let tokenizer = Tokenizer::from_gguf(&vocab).unwrap();
    assert_eq!(tokenizer.encode("abc", false).unwrap(), [259, 265]);
    assert_eq!(tokenizer.encode("ab", true).unwrap(), [1, 259, 263]);
    assert_eq!(tokenizer.encode("é", false).unwrap(), [259, 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("abc é  a", false).unwrap()).unwrap(), "abc é  a");
}

#[test]
fn token_lookups_agree_with_the_file() {
    let tokenizer = Tokenizer::from_gguf(&as_gguf("tiny-tokenizer.json", "smollm")).unwrap();
    assert_eq!(tokenizer.vocab_size(), 320);
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.id_to_token(2), Some("<|im_end|>"));
    assert_eq!(tokenizer.token_to_id("no such token"), None);
    assert_eq!(tokenizer.id_to_token(320), None);
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(3));
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.eot_id()), (Some(0), None, Some(2)));
    assert_eq!(tokenizer.stop_ids(), [2]);
}

#[test]
fn a_stream_holds_bytes_until_the_character_is_whole() {
    let tokenizer = Tokenizer::from_file(golden("tiny-tokenizer.json")).unwrap();
    let text = "\u{1F468}\u{200D}\u{1F469} 안녕";
    let ids = tokenizer.encode(text, false).unwrap();
    assert!(ids.len() > text.chars().count(), "the text must need several tokens for a character");
    let mut stream = tokenizer.stream();
    let mut seen = String::new();
    for &id in &ids {
        seen.push_str(&stream.push(id).unwrap());
        assert!(text.starts_with(&seen), "{seen:?}");
    }
    assert_eq!(seen, text);
    assert_eq!(stream.finish(), "");
    let mut cut = tokenizer.stream();
    assert_eq!(cut.push(ids[0]).unwrap(), "");
    assert_eq!(cut.finish(), "\u{fffd}");
}

#[test]
fn a_stream_refuses_an_unknown_id_and_goes_on() {
    let tokenizer = Tokenizer::from_file(golden("tiny-tokenizer.json")).unwrap();
    let mut stream = tokenizer.stream();
    assert!(stream.push(320).unwrap_err().to_string().contains("320"));
    assert!(stream.push(u32::MAX).is_err());
    let id = tokenizer.token_to_id("a").unwrap();
    assert_eq!(stream.push(id).unwrap(), "a");
}

fn tiny() -> &'static [Tokenizer; 3] {
    static TINY: std::sync::OnceLock<[Tokenizer; 3]> = std::sync::OnceLock::new();
    TINY.get_or_init(|| {
        ["", "-llama3", "-llama2"]
            .map(|kind| Tokenizer::from_file(golden(&format!("tiny-tokenizer{kind}.json"))).unwrap())
    })
}

proptest! {
    #[test]
    fn decoding_undoes_encoding(text in any::<String>()) {
        for tokenizer in tiny() {
            prop_assert_eq!(&tokenizer.decode(&tokenizer.encode(&text, false).unwrap()).unwrap(), &text);
        }
    }

    #[test]
    fn a_stream_gives_what_decoding_all_the_bytes_gives(ids in prop::collection::vec(0u32..320, 0..60)) {
        let tokenizer = &tiny()[0];
        let mut stream = tokenizer.stream();
        let mut text = String::new();
        for &id in &ids {
            text.push_str(&stream.push(id).unwrap());
        }
        text.push_str(&stream.finish());
        prop_assert_eq!(&text, &tokenizer.decode(&ids).unwrap());
        // The same bytes by the standard library's own rule.
        let mut bytes = Vec::new();
        for &id in ids.iter().filter(|&&id| !tokenizer.is_special(id)) {
            for character in tokenizer.id_to_token(id).unwrap().chars() {
                let printable = |b: &u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
                let hidden: Vec<u8> = (0..=255).filter(|b| !printable(b)).collect();
                let code = u32::from(character);
                bytes.push(if code < 0x100 { code as u8 } else { hidden[(code - 0x100) as usize] });
            }
        }
        prop_assert_eq!(text, String::from_utf8_lossy(&bytes).into_owned());
    }
}
