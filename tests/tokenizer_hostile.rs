//! Damaged and hostile vocabularies end in a typed error that says what is wrong; none panics.
//! Both readers are covered; ids against the reference are in `tokenizer.rs`.
#![allow(clippy::unwrap_used)]

use portolan::tokenizer::{GgufMerges, GgufVocab, Tokenizer, TokenizerError};
use proptest::prelude::*;

fn vocab(tokens: &[&str], merges: &[&str]) -> GgufVocab {
    let text = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    GgufVocab { pre: Some("gpt-2".into()), ..GgufVocab::new(text(tokens), GgufMerges::Ranked(text(merges))) }
}

fn refused(vocab: &GgufVocab) -> TokenizerError {
    Tokenizer::from_gguf(vocab).unwrap_err()
}

#[test]
fn an_empty_vocabulary_is_refused() {
    assert!(matches!(refused(&vocab(&[], &[])), TokenizerError::Empty));
    let json = br#"{"model":{"type":"BPE","vocab":{},"merges":[]}}"#;
    assert!(matches!(Tokenizer::from_json(json, None), Err(TokenizerError::Empty)));
}

#[test]
fn a_duplicate_token_is_refused_with_both_ids() {
    match refused(&vocab(&["a", "b", "a"], &[])) {
        TokenizerError::DuplicateToken { token, first: 0, second: 2 } => assert_eq!(token, "a"),
        other => panic!("{other}"),
    }
    let json = br#"{"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}}"#;
    let error = Tokenizer::from_json(json, None).unwrap_err();
    assert!(error.to_string().contains("both `a` and `b`"), "{error}");
}

#[test]
fn a_merge_of_unknown_tokens_is_refused_by_name() {
    for merges in [["a x"], ["x a"], ["a b"]] {
        let error = refused(&vocab(&["a", "b"], &merges));
        assert!(matches!(error, TokenizerError::UnknownMergeToken { rank: 0, .. }), "{error}");
    }
    // The joined text is longer than any token.
    let json = br#"{"model":{"type":"BPE","vocab":{"a":0,"b":1},"merges":[["a","b"]]}}"#;
    let error = Tokenizer::from_json(json, None).unwrap_err();
    assert!(error.to_string().contains("`ab`"), "{error}");
}

#[test]
fn a_merge_without_two_halves_is_refused() {
    assert!(matches!(refused(&vocab(&["a"], &["a"])), TokenizerError::Malformed { .. }));
    assert!(matches!(refused(&vocab(&["a"], &[""])), TokenizerError::Malformed { .. }));
}

#[test]
fn ids_outside_the_vocabulary_are_refused() {
    for id in [1, u64::from(u32::MAX), u64::MAX] {
        for field in 0..4 {
            let mut file = vocab(&["a"], &[]);
            *[&mut file.bos, &mut file.eos, &mut file.eot, &mut file.unknown][field] = Some(id);
            assert!(matches!(refused(&file), TokenizerError::IdOutOfRange { .. }), "{id} {field}");
        }
    }
    let huge = br#"{"model":{"type":"BPE","vocab":{"a":18446744073709551615},"merges":[]}}"#;
    assert!(matches!(Tokenizer::from_json(huge, None), Err(TokenizerError::TooLarge { .. })));
    let sparse = br#"{"model":{"type":"BPE","vocab":{"a":8000000},"merges":[]}}"#;
    assert!(matches!(Tokenizer::from_json(sparse, None), Err(TokenizerError::TooLarge { .. })));
    let added = br#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"added_tokens":[{"id":8000000,"content":"x"}]}"#;
    assert!(matches!(Tokenizer::from_json(added, None), Err(TokenizerError::Malformed { .. })));
}

#[test]
fn lists_of_unequal_length_are_refused() {
    let mut file = vocab(&["a", "b"], &[]);
    file.types = Some(vec![1]);
    assert!(matches!(refused(&file), TokenizerError::Malformed { .. }));
    file.types = None;
    file.merges = GgufMerges::Scores(vec![0.0; 3]);
    assert!(matches!(refused(&file), TokenizerError::Malformed { .. }));
    file.merges = GgufMerges::Scores(vec![0.0, f32::NAN]);
    assert!(matches!(refused(&file), TokenizerError::Malformed { .. }));
}

#[test]
fn an_unknown_splitting_rule_names_the_known_ones() {
    let mut file = vocab(&["a"], &[]);
    file.pre = Some("mystery\u{1b}[31m".repeat(100));
    let message = refused(&file).to_string();
    assert!(message.contains("smollm") && message.contains("llama-bpe"), "{message}");
    assert!(message.len() < 700 && !message.contains('\u{1b}'), "{message}");
}

#[test]
fn a_huge_token_is_refused() {
    let long = "x".repeat(1 << 20);
    assert!(matches!(refused(&vocab(&[&long], &[])), TokenizerError::TooLarge { .. }));
}

#[test]
fn a_character_without_a_token_is_an_error_and_not_dropped() {
    let tokenizer = Tokenizer::from_gguf(&vocab(&["a"], &[])).unwrap();
    let message = tokenizer.encode("a\u{4}", false).unwrap_err().to_string();
    assert!(message.contains("byte 0x04"), "{message}");
}

#[test]
fn control_types_on_every_token_and_empty_texts_are_harmless() {
    let mut file = vocab(&["", "a", "aa"], &[]);
    file.types = Some(vec![3, 4, i32::MIN]);
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    assert_eq!(tokenizer.encode_with_special("aa", true).unwrap(), [1, 1]);
    assert_eq!(tokenizer.decode(&[0, 1, 2]).unwrap(), "aaa");
}

#[test]
fn a_bad_pattern_is_refused_and_a_slow_one_gives_up() {
    let file = |pattern: &str| {
        let pre = serde_json::json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"});
        let decoder = serde_json::json!({"type": "ByteLevel"});
        let model = serde_json::json!({"type": "BPE", "vocab": {"a": 0}, "merges": []});
        serde_json::json!({"model": model, "pre_tokenizer": pre, "decoder": decoder}).to_string()
    };
    let build = |pattern: &str| Tokenizer::from_json(file(pattern).as_bytes(), None);
    for pattern in ["(", "a{999999999}", "[z-a]", &"(".repeat(5000), &"a".repeat(10_000)] {
        let error = build(pattern).unwrap_err();
        assert!(matches!(error, TokenizerError::Pattern { .. } | TokenizerError::TooLarge { .. }), "{error}");
    }
    let slow = build(r"(a*)(a*)(a*)(a*)(a*)(a*)\1\2\3\4\5\6[xy]").unwrap();
    let text = "a".repeat(80);
    let error = slow.encode(&text, false).unwrap_err();
    assert!(matches!(error, TokenizerError::Pattern { .. }), "{error}");
}

#[test]
fn unsupported_parts_of_a_tokenizer_json_are_named() {
    let cases = [
        (r#"{"model":{"type":"Unigram","vocab":[]}}"#, "Unigram"),
        (r#"{"model":{"type":"BPE","dropout":0.1,"vocab":{"a":0},"merges":[]}}"#, "random"),
        (r#"{"model":{"type":"BPE","end_of_word_suffix":"</w>","vocab":{"a":0},"merges":[]}}"#, "</w>"),
        (
            r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"normalizer":{"type":"Precompiled"}}"#,
            "Precompiled",
        ),
        (r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"pre_tokenizer":{"type":"Bert"}}"#, "Bert"),
        (r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[]},"decoder":{"type":"CTC"}}"#, "CTC"),
        (r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[],"unk_token":"?"}}"#, "`?`"),
    ];
    for (text, wanted) in cases {
        let message = Tokenizer::from_json(text.as_bytes(), None).unwrap_err().to_string();
        assert!(message.contains(wanted), "{message}");
    }
}

#[test]
fn a_missing_or_broken_file_says_which() {
    let error = Tokenizer::from_file("/no/such/tokenizer.json").unwrap_err();
    assert!(error.to_string().contains("/no/such/tokenizer.json"), "{error}");
    let deep = "[".repeat(100_000);
    for text in ["", "{", "null", "[]", "3", "\u{0}", deep.as_str()] {
        assert!(Tokenizer::from_json(text.as_bytes(), None).is_err(), "{text:.10}");
    }
}

#[test]
fn a_long_run_of_one_character_is_encoded_in_bounded_time() {
    let mut tokens: Vec<String> = vec!["Ġ".into(), "a".into()];
    let mut merges = Vec::new();
    for unit in ["Ġ", "a"] {
        let mut text = unit.to_owned();
        for _ in 0..8 {
            merges.push(format!("{text} {text}"));
            text = text.repeat(2);
            tokens.push(text.clone());
        }
    }
    let file =
        GgufVocab { pre: Some("llama-bpe".into()), ..GgufVocab::new(tokens, GgufMerges::Ranked(merges)) };
    let tokenizer = Tokenizer::from_gguf(&file).unwrap();
    for unit in [" ", "a"] {
        let text = unit.repeat(1 << 18);
        let ids = tokenizer.encode(&text, false).unwrap();
        assert_eq!(ids.len(), 1 << 10);
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
    }
}

proptest! {
    /// Any lists whatever: an answer or an error, never a panic, and what is encoded decodes.
    #[test]
    fn any_vocabulary_gives_an_answer_or_an_error(
        tokens in prop::collection::vec("[ab▁Ġ<>0xA-F]{0,3}", 0..12),
        merges in prop::collection::vec("[ab▁Ġ]{0,2} ?[ab▁Ġ]{0,2}", 0..6),
        types in prop::option::of(prop::collection::vec(0..8, 0..12)),
        pre in prop::option::of("smollm|llama-bpe|qwen2|other"),
        marks in prop::collection::vec(prop::option::of(0..14u64), 4),
        scored in any::<bool>(),
        text in "[ab <>é0x]{0,12}",
    ) {
        let merges = if scored {
            GgufMerges::Scores(vec![1.0; tokens.len()])
        } else {
            GgufMerges::Ranked(merges)
        };
        let mut file = GgufVocab { types, pre, ..GgufVocab::new(tokens, merges) };
        (file.bos, file.eos, file.eot, file.unknown) = (marks[0], marks[1], marks[2], marks[3]);
        if let Ok(tokenizer) = Tokenizer::from_gguf(&file)
            && let Ok(ids) = tokenizer.encode_with_special(&text, true)
        {
            prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
            tokenizer.decode_with_special(&ids).unwrap();
        }
    }

    /// A valid file with one byte changed.
    #[test]
    fn a_changed_byte_gives_an_answer_or_an_error(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tiny-tokenizer-llama3.json");
        let mut bytes = std::fs::read(path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(tokenizer) = Tokenizer::from_json(&bytes, None) {
            let _ = tokenizer.encode_with_special("The <|im_end|> dog's 12345", true);
        }
    }
}
