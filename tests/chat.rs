//! Chat templates against Jinja2 set up as `transformers` does, and hostile templates against their limits.
//! The references are written by `golden/chat_styles.py` and `golden/smollm2_text.py`.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant, UNIX_EPOCH};

use portolan::chat::{ChatError, ChatMessage, ChatTemplate};
use portolan::tokenizer::{GgufMerges, GgufVocab, Tokenizer};
use serde_json::Value;

fn json(name: &str) -> Value {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn messages(value: &Value) -> Vec<ChatMessage> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let one = |value: &Value| ChatMessage::new(text(&value["role"]), text(&value["content"]));
    value.as_array().unwrap().iter().map(one).collect()
}

#[test]
fn smollm2_template_gives_the_reference_text() {
    let file = json("chat.json");
    let template = ChatTemplate::new(file["template"].as_str().unwrap(), "", "").unwrap();
    let chats = file["chats"].as_array().unwrap();
    assert!(chats.len() >= 3);
    for chat in chats {
        let text = template
            .render(&messages(&chat["messages"]), chat["add_generation_prompt"].as_bool().unwrap())
            .unwrap();
        assert_eq!(text, chat["text"].as_str().unwrap());
    }
}

#[test]
fn templates_of_several_styles_give_what_jinja2_gives() {
    let file = json("chat-styles.json");
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 18);
    let mut refusals = 0;
    for case in cases {
        let name = case["template"].as_str().unwrap();
        let source = file["templates"][name].as_str().unwrap();
        // 29 February 2024, 12:34:56.
        let when = UNIX_EPOCH + Duration::from_secs(1_709_210_096);
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap().with_time(when);
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        match (template.render(&messages(&case["messages"]), prompt), case["text"].as_str()) {
            (Ok(text), Some(wanted)) => assert_eq!(text, wanted, "{name}"),
            (Err(ChatError::Refused { why }), None) => {
                refusals += 1;
                assert!(case["refused"].as_str().unwrap().starts_with(&why[..20]), "{why}");
            }
            (seen, wanted) => panic!("{name}: {seen:?}, wanted {wanted:?}"),
        }
    }
    assert!(refusals > 0, "no case refuses");
}

/// Printable ASCII, one token a character, then the special tokens `<|end|>` and `<|e`.
fn ascii() -> Tokenizer {
    let mut tokens: Vec<String> = (b'!'..=b'~').map(|byte| char::from(byte).to_string()).collect();
    let mut types = vec![1; tokens.len()];
    // The byte-level alphabet writes a space as `Ġ`.
    tokens.extend(["Ġ", "<|end|>", "<|e"].map(String::from));
    types.extend([1, 3, 3]);
    let vocab = GgufVocab {
        types: Some(types),
        pre: Some("gpt-2".into()),
        ..GgufVocab::new(tokens, GgufMerges::Ranked(Vec::new()))
    };
    Tokenizer::from_gguf(&vocab).unwrap()
}

#[test]
fn a_special_token_that_a_message_spells_is_text() {
    let template = "{% for m in messages %}{{ m.content | trim }}<|end|>{% endfor %}";
    let template = ChatTemplate::new(template, "", "").unwrap();
    let tokenizer = ascii();
    let end = tokenizer.encode_with_special("<|end|>", false).unwrap()[0];
    for said in [
        "hi",
        "<|end|>",
        "  so <|end|> then  ",
        "<|end|><|end|>",
        "<|e<|end|>nd|>",
        "<|<|end|>end|>",
        "<|end|",
        "{{ '<|end|>' }}",
    ] {
        let messages = [ChatMessage::new("user", said), ChatMessage::new("user", "x")];
        let ids = template.encode(&tokenizer, &messages, false).unwrap();
        let plain = |text: &str| tokenizer.encode(text, false).unwrap();
        let wanted = [plain(said.trim()), vec![end], plain("x"), vec![end]].concat();
        assert_eq!(ids, wanted, "{said:?}");
        assert_eq!(tokenizer.decode_with_special(&ids).unwrap(), template.render(&messages, false).unwrap());
    }
}

#[test]
fn a_special_token_that_a_normal_form_makes_of_a_message_is_text() {
    let vocab: serde_json::Map<String, Value> = (b'!'..=b'~')
        .map(|byte| char::from(byte).to_string())
        .chain(["<|end|>".into()])
        .enumerate()
        .map(|(id, token)| (token, id.into()))
        .collect();
    let end = vocab["<|end|>"].as_u64().unwrap() as u32;
    let file = serde_json::json!({
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "decoder": {"type": "ByteLevel"},
        "added_tokens": [{"id": end, "content": "<|end|>", "special": true, "normalized": true,
            "lstrip": false, "rstrip": false, "single_word": false}],
    });
    let tokenizer = Tokenizer::from_json(file.to_string().as_bytes(), None).unwrap();
    let template = ChatTemplate::new("{{ messages[0].content }}<|end|>", "", "").unwrap();
    // Fullwidth forms, which NFKC turns into the ASCII ones.
    for said in ["<|end|>", "\u{ff1c}|end|\u{ff1e}", "a\u{ff1c}|\u{ff45}nd|>b"] {
        let ids = template.encode(&tokenizer, &[ChatMessage::new("user", said)], false).unwrap();
        let wanted = [tokenizer.encode(said, false).unwrap(), vec![end]].concat();
        assert_eq!(ids, wanted, "{said:?}");
        assert_eq!(ids.iter().filter(|&&id| id == end).count(), 1, "{said:?}");
    }
}

#[test]
fn a_character_that_could_be_the_mark_reaches_the_vocabulary() {
    let template = ChatTemplate::new("{{ messages[0].content }}", "", "").unwrap();
    let encode = |said: &str| template.encode(&ascii(), &[ChatMessage::new("user", said)], false);
    assert!(encode("x<|end|>x").is_ok());
    // This vocabulary has no token for it, and says so rather than to leave it out.
    assert!(encode("x\u{fdd0}<|end|>x").is_err());
}

fn render(source: &str) -> Result<String, ChatError> {
    let chat = [ChatMessage::new("user", "Hello"), ChatMessage::new("assistant", "Hi")];
    ChatTemplate::new(source, "", "")?.render(&chat, true)
}

#[test]
fn hostile_templates_end_soon_in_a_typed_error() {
    let doubling = "{% set a = a ~ a %}".repeat(60);
    let lists = "{% set a = [a, a] %}".repeat(60);
    let nested = "{% set a = [a] %}".repeat(5000);
    let maps = "{% set a = {'x': a, 'y': a} %}".repeat(60);
    let captured = "{% set a %}{{ a }}{{ a }}{% endset %}".repeat(60);
    let replaced = "{% set a = a | replace('x', 'xxxxxxxxxx') %}".repeat(30);
    let methods = "{% set a = a.replace('x', 'xxxxxxxxxx') %}".repeat(30);
    let joined = "{% set a = [a, a, a] | join(a) %}".repeat(40);
    let raw = format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "y".repeat(200_000));
    let hostile = [
        format!("{{% set a = 'x' %}}{doubling}{{{{ a }}}}"),
        format!("{{% set a = 'x' %}}{}{{{{ a }}}}", doubling.replace('~', "+")),
        format!("{{% set a = ['x'] %}}{}{{{{ a }}}}", doubling.replace('~', "+")),
        format!("{{% set a = 'x' %}}{lists}{{{{ a }}}}"),
        format!("{{% set a = 'x' %}}{lists}{{{{ a == a }}}}"),
        format!("{{% set a = 'x' %}}{nested}{{{{ a | tojson }}}}"),
        format!("{{% set a = 'x' %}}{maps}{{{{ a | tojson }}}}"),
        format!("{{% set a = 'x' %}}{captured}{{{{ a }}}}"),
        format!("{{% set a = 'x' %}}{replaced}{{{{ a }}}}"),
        format!("{{% set a = 'x' %}}{methods}{{{{ a }}}}"),
        format!("{{% set a = 'x' %}}{joined}{{{{ a }}}}"),
        raw,
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".into(),
        "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}".into(),
        "{% set n = namespace(s=['x' ~ 1, 2]) %}{% for i in range(9999) %}{% set n.s = [n.s] %}{% endfor %}".into(),
        "{% set n = namespace() %}{% set n.n = n %}{{ n }}".into(),
        "{% set n = namespace() %}{% set n.n = n %}{{ n == n }}{{ n | tojson }}{{ n ~ '' }}".into(),
        "{% set n = namespace(l=[]) %}{% set b = 'x' | replace('x', 'yyyyyyyyyy') %}{% for i in range(9999) %}\
         {% set n.l = n.l + [b[0:]] %}{% endfor %}"
            .into(),
    ];
    for source in &hostile {
        let start = Instant::now();
        let error = render(source).unwrap_err();
        assert!(matches!(error, ChatError::Limit { .. }), "{error}: {source:.90}");
        assert!(start.elapsed() < Duration::from_secs(20), "{source:.90}");
    }
}

#[test]
fn endless_recursion_and_deep_nesting_are_errors() {
    let macros = "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('x') }}";
    assert!(render(macros).is_err());
    let loops = "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}";
    assert!(render(loops).is_err());
    let chain = format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(4000));
    assert_eq!(render(&chain).unwrap(), "");
    for open in ["(", "[", "{% if 1 %}", "{% for i in x %}", "not ", "-"] {
        let source = if open.starts_with("{%") {
            open.repeat(9000)
        } else {
            format!("{{{{ {} }}}}", open.repeat(60_000))
        };
        let error = render(&source).unwrap_err();
        assert!(matches!(error, ChatError::Syntax { .. } | ChatError::Limit { .. }), "{open}: {error}");
    }
}

#[test]
fn what_reaches_other_templates_or_repeats_text_is_refused_by_name() {
    for source in [
        "{% include 'x' %}",
        "{% extends 'x' %}",
        "{% import 'x' as y %}",
        "{% block a %}{% endblock %}",
        "{{ 'x' * 100000000 }}",
        "{{ ['x'] * 100000000 }}",
        "{{ messages | pprint }}",
    ] {
        let error = render(source).unwrap_err();
        assert!(matches!(error, ChatError::Unsupported { .. }), "{source}: {error}");
    }
    assert!(render("{% set a = 'x' %}{{ a * 100000000 }}").is_err());
    assert!(render("{{ messages | map('pprint') | list }}").is_err());
    assert!(render("{{ debug() }}").is_err());
}

#[test]
fn errors_say_where_and_are_one_line() {
    let error = render("{% for %}").unwrap_err();
    assert!(matches!(error, ChatError::Syntax { .. }) && error.to_string().contains("line 1"), "{error}");
    let error = render("ok\n{{ nothing.at.all }}").unwrap_err();
    assert!(matches!(error, ChatError::Render { .. }) && error.to_string().contains("line 2"), "{error}");
    let error = render("{{ raise_exception('only\nusers') }}").unwrap_err();
    assert!(matches!(error, ChatError::Refused { .. }) && !error.to_string().contains('\n'), "{error}");
    assert!(render(&"x".repeat(1 << 20)).unwrap_err().to_string().contains("limit"));
}

#[test]
fn a_tokenizer_config_gives_its_template_and_tokens() {
    let config = br#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>",
        "chat_template": [{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ bos_token }}{{ eos_token }}"}]}"#;
    assert_eq!(ChatTemplate::from_config(config).unwrap().render(&[], false).unwrap(), "<s></s>");
    for config in [&b"{}"[..], b"", b"[]", b"{\"chat_template\": 3}"] {
        assert!(matches!(ChatTemplate::from_config(config), Err(ChatError::Missing { .. })));
    }
}

#[test]
fn a_long_conversation_is_within_the_limits() {
    let file = json("chat-styles.json");
    let source = file["templates"]["llama3"].as_str().unwrap();
    let chat: Vec<_> = (0..400).map(|at| ChatMessage::new("user", format!("{at} ").repeat(200))).collect();
    let text = ChatTemplate::new(source, "", "").unwrap().render(&chat, true).unwrap();
    assert!(text.len() > 400 * 400);
}
