//! SmolLM2's own tokenizer and chat template, out of its GGUF file, against their references.
//! Runs where the file is: in `$PORTOLAN_MODEL_DIR` or the cache folder; else it says that it was skipped.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::PathBuf;

use portolan::chat::{ChatMessage, ChatTemplate};
use portolan::fetch::{KNOWN_MODELS, cache_folder};
use portolan::load::gguf::Gguf;
use portolan::tokenizer::{Tokenizer, TokenizerError};
use serde_json::Value;

fn open() -> Option<Gguf> {
    let folders = [std::env::var_os("PORTOLAN_MODEL_DIR").map(PathBuf::from), cache_folder(None).ok()];
    let paths = folders.into_iter().flatten().map(|folder| folder.join(KNOWN_MODELS[0].file));
    let found = paths.into_iter().find(|path| path.is_file());
    if found.is_none() {
        // Not by `eprintln!`, which the test runner keeps back.
        let mut terminal = std::io::stderr();
        writeln!(terminal, "SKIPPED: no {}; run `portolan fetch smollm2`", KNOWN_MODELS[0].file).unwrap();
    }
    found.map(|path| Gguf::open(&path).unwrap())
}

fn golden(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn smollm2_vocabulary_gives_the_reference_ids() {
    let Some(file) = open() else { return };
    let tokenizer = Tokenizer::from_metadata(file.metadata()).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos_id()), (49_152, Some(1)));
    assert_eq!((tokenizer.stop_ids(), tokenizer.eot_id()), (vec![2], Some(2)));
    let reference: Value = serde_json::from_str(&golden("tokenizer-encodings.json")).unwrap();
    for row in reference["smollm2"].as_array().unwrap() {
        let text = row["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids(&row["plain"]), "{text:?}");
        assert_eq!(tokenizer.decode(&ids(&row["special"])).unwrap(), row["decoded"].as_str().unwrap());
    }
    let mut refused = 0;
    for line in golden("smollm2-tokens.jsonl").lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let text = row["text"].as_str().unwrap();
        match tokenizer.encode_with_special(text, false) {
            Ok(seen) => assert_eq!(seen, ids(&row["ids"]), "{text:?}"),
            // The reference drops bytes that the vocabulary cannot spell; here that is an error.
            Err(TokenizerError::Unencodable { .. }) if row["lossless"] == false => {
                refused += 1;
                continue;
            }
            Err(error) => panic!("{text:?}: {error}"),
        }
        assert_eq!(tokenizer.encode(text, false).unwrap(), ids(&row["plain_ids"]), "{text:?}");
    }
    assert!(refused <= 2, "{refused} texts were refused");
}

#[test]
fn smollm2_chat_gives_the_reference_text_and_ids() {
    let Some(file) = open() else { return };
    let tokenizer = Tokenizer::from_metadata(file.metadata()).unwrap();
    let template = ChatTemplate::from_metadata(file.metadata()).unwrap();
    let reference: Value = serde_json::from_str(&golden("chat.json")).unwrap();
    for chat in reference["chats"].as_array().unwrap() {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let one = |value: &Value| ChatMessage::new(text(&value["role"]), text(&value["content"]));
        let messages: Vec<_> = chat["messages"].as_array().unwrap().iter().map(one).collect();
        let seen = template.render(&messages, chat["add_generation_prompt"].as_bool().unwrap()).unwrap();
        assert_eq!(seen, chat["text"].as_str().unwrap());
        assert_eq!(tokenizer.encode_with_special(&seen, false).unwrap(), ids(&chat["ids"]));
    }
}
