//! BERT encoders against the transformers library: states and sentence embeddings of tiny random models, and the
//! embeddings of MiniLM with its real weights. The references are written by `golden/bert.py`.
//! The real ones run where the model is: in `$PORTOLAN_MODEL_DIR` or the cache folder; else they say that they were skipped.
#![allow(clippy::unwrap_used)]

mod rig;

use portolan::fetch::cache_folder;
use portolan::load::config::{BertConfig, SentenceConfig};
use portolan::load::{self, HostWeight, LoadError, WeightSource};
use portolan::models::Bert;
use portolan::nn::Precision;
use portolan::{ErrorKind, Fallback, SentenceEncoder, Stream, StreamOptions, Tensor};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The largest difference accepted, as a fraction of the largest value.
const LIMIT: f64 = 1e-4;
const MODELS: [&str; 3] = ["bert-gelu", "bert-relu", "bert-gelu-new"];
const MINILM: &str = "all-MiniLM-L6-v2";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn stream() -> Stream {
    portolan::open("cpu:0").unwrap().stream(StreamOptions::default()).unwrap()
}

fn load_model(stream: &Stream, folder: &Path) -> Bert {
    let source = load::open(folder).unwrap();
    Bert::load(stream, source.as_ref(), Precision::Exact, &mut |_, _| {}).unwrap()
}

fn values(file: &dyn WeightSource, name: &str) -> Vec<f64> {
    match file.load(name).unwrap() {
        HostWeight::Dense(tensor) => tensor.to_f64(),
        _ => panic!("{name} is quantized"),
    }
}

/// The texts of a golden file, as tokens.
fn texts(file: &dyn WeightSource) -> Vec<Vec<u32>> {
    let names = (0..).map(|i| format!("input_ids.{i}")).take_while(|name| file.contains(name));
    names.map(|name| values(file, &name).into_iter().map(|id| id as u32).collect()).collect()
}

/// What is there for each text, one behind the other.
fn all(file: &dyn WeightSource, what: &str, texts: usize) -> Vec<f64> {
    (0..texts).flat_map(|i| values(file, &format!("{what}.{i}"))).collect()
}

fn download(stream: &Stream, x: &Tensor) -> Vec<f64> {
    stream.download::<f32>(x).unwrap().wait().unwrap().into_iter().map(f64::from).collect()
}

/// The largest difference as a fraction of the largest value.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let (difference, largest) = portolan_ops::max_abs_difference(got, want);
    difference / largest
}

fn refs(texts: &[Vec<u32>]) -> Vec<&[u32]> {
    texts.iter().map(Vec::as_slice).collect()
}

#[test]
fn states_and_embeddings_agree_with_transformers() {
    MODELS.iter().for_each(|name| expect_states_and_embeddings_to_agree(&stream(), name));
}

/// One model on A3; with `PORTOLAN_ALL_CASES=1`, all on every product that multiplies in f32.
#[test]
fn simulated_ascend_agrees_with_transformers() {
    let all = rig::all_cases();
    let (socs, names) =
        if all { (&["A2", "A3", "950"][..], &MODELS[..]) } else { (&["A3"][..], &MODELS[..1]) };
    for (soc, name) in socs.iter().flat_map(|soc| names.iter().map(move |name| (soc, name))) {
        let (stream, world) = rig::ascend(soc, Fallback::Allow);
        expect_states_and_embeddings_to_agree(&stream, name);
        stream.synchronize().unwrap();
        drop(stream);
        let report = world.report().unwrap();
        assert!(report.is_clean(), "{name} on {soc}: {report}");
    }
}

fn expect_states_and_embeddings_to_agree(stream: &Stream, name: &str) {
    let model = load_model(stream, &golden(name));
    let file = load::open(&golden(name).join("golden.safetensors")).unwrap();
    let texts = texts(file.as_ref());
    assert_eq!(texts.iter().map(Vec::len).collect::<Vec<_>>(), [1, 7, 24, 64, 3]);
    // All of them in one ragged batch.
    let states = download(stream, &model.states(stream, &refs(&texts)).unwrap());
    let embeddings = download(stream, &model.embed(stream, &refs(&texts)).unwrap());
    let states = distance(&states, &all(file.as_ref(), "states", texts.len()));
    let embeddings = distance(&embeddings, &all(file.as_ref(), "embedding", texts.len()));
    println!("{name}: states {states:.2e}, embeddings {embeddings:.2e}");
    assert!(states <= LIMIT && embeddings <= LIMIT, "{name}: {states:e}, {embeddings:e}");
}

#[test]
fn a_ragged_batch_gives_what_its_texts_give_one_by_one() {
    for name in MODELS {
        let stream = stream();
        let model = load_model(&stream, &golden(name));
        let mut texts = texts(load::open(&golden(name).join("golden.safetensors")).unwrap().as_ref());
        texts.insert(2, Vec::new());
        let together = download(&stream, &model.embed(&stream, &refs(&texts)).unwrap());
        let hidden = model.config().hidden;
        for (text, got) in texts.iter().zip(together.chunks(hidden)) {
            let length = got.iter().map(|x| x * x).sum::<f64>().sqrt();
            if text.is_empty() {
                assert!(got.iter().all(|&x| x == 0.0), "{name}: a text without tokens has no direction");
                continue;
            }
            let alone = download(&stream, &model.embed(&stream, &[text]).unwrap());
            let distance = distance(got, &alone);
            // Products may sum in another order for another number of rows: √64 roundings, passed on by three layers.
            assert!(distance <= 1e-5, "{name}, {} tokens: {distance:e}", text.len());
            assert!((length - 1.0).abs() <= 1e-6, "{name}: length {length}");
        }
        assert_eq!(model.embed(&stream, &[]).unwrap().dims(), [0, hidden]);
    }
}

#[test]
fn every_weight_counts() {
    // Whatever tensor is moved by a hundredth, the states show it: none is left out and none is read twice.
    let name = MODELS[0];
    let file = load::open(&golden(name).join("golden.safetensors")).unwrap();
    let texts = texts(file.as_ref());
    let want = all(file.as_ref(), "states", texts.len());
    let bytes = std::fs::read(golden(name).join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden(name).join("config.json"), folder.path().join("config.json")).unwrap();
    let mut moved = 0;
    for (tensor, info) in tensors.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        // The softmax does not see what is added to all scores of a query, which is all that a key's bias does.
        if tensor.ends_with("key.bias") {
            continue;
        }
        let mut bytes = bytes.clone();
        let [start, end] = [0, 1].map(|i| 8 + header + info["data_offsets"][i].as_u64().unwrap() as usize);
        for (at, value) in bytes[start..end].chunks_mut(4).enumerate() {
            let old = f32::from_le_bytes(value.try_into().unwrap());
            // Not by the same everywhere, which a norm would take away again.
            value.copy_from_slice(&(old + 1e-2 * (1 + at % 3) as f32).to_le_bytes());
        }
        std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        let stream = stream();
        let states = load_model(&stream, folder.path()).states(&stream, &refs(&texts)).unwrap();
        let distance = distance(&download(&stream, &states), &want);
        assert!(distance > LIMIT, "{tensor} went unnoticed: {distance:e}");
        moved += 1;
    }
    // Three tables, a norm of the sum, and of each of two layers sixteen tensors but for the key's bias.
    assert_eq!(moved, 3 + 2 + 2 * 15);
}

#[test]
fn a_text_longer_than_the_positions_is_refused() {
    let stream = stream();
    let model = load_model(&stream, &golden(MODELS[0]));
    let error = model.embed(&stream, &[&[1; 65]]).unwrap_err().to_string();
    assert!(error.contains("65 tokens") && error.contains("64 positions"), "{error}");
}

fn config(change: impl FnOnce(&mut Value)) -> Result<BertConfig, LoadError> {
    let mut json = json!({
        "architectures": ["BertModel"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 32,
    });
    change(&mut json);
    BertConfig::from_json(Path::new("config.json"), &json)
}

#[test]
fn what_would_change_the_result_unread_is_refused() {
    assert_eq!(config(|_| ()).unwrap().head_dim(), 16);
    let changes: [(&str, Value, &str); 9] = [
        ("architectures", json!(["RobertaModel"]), "BertModel"),
        ("architectures", json!(null), "BertModel"),
        ("position_embedding_type", json!("relative_key"), "absolute"),
        ("is_decoder", json!(true), "false"),
        ("hidden_act", json!("mish"), "gelu"),
        ("num_attention_heads", json!(5), "divisor"),
        ("num_attention_heads", json!(0), "from 1"),
        ("hidden_size", json!(1u64 << 40), "from 1"),
        ("layer_norm_eps", json!(-1.0), "between 0 and 1"),
    ];
    for (key, value, wanted) in changes {
        let error = config(|json| json[key] = value).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(key) && error.to_string().contains(wanted), "{error}");
    }
    // A layer that is stored and not counted.
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(MODELS[0]).join(name), folder.path().join(name)).unwrap();
    }
    let path = folder.path().join("config.json");
    let fewer =
        std::fs::read_to_string(&path).unwrap().replace("num_hidden_layers\": 2", "num_hidden_layers\": 1");
    std::fs::write(&path, fewer).unwrap();
    let source = load::open(folder.path()).unwrap();
    let error = BertConfig::from_source(source.as_ref()).unwrap_err().to_string();
    assert!(error.contains("is of layer 1, the configuration has 1"), "{error}");
}

#[test]
fn a_pooling_other_than_the_mean_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(SentenceConfig::from_folder(folder.path()).unwrap(), SentenceConfig::default());
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    let write = |name: &str, json: Value| std::fs::write(folder.path().join(name), json.to_string()).unwrap();
    let mean = json!({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false});
    write("1_Pooling/config.json", mean.clone());
    write("sentence_bert_config.json", json!({"max_seq_length": 256}));
    assert_eq!(SentenceConfig::from_folder(folder.path()).unwrap().max_tokens, Some(256));
    for modes in [json!({"pooling_mode_cls_token": true}), json!({}), json!([])] {
        write("1_Pooling/config.json", modes);
        let error = SentenceConfig::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("pooling_mode_mean_tokens alone"), "{error}");
    }
    write("1_Pooling/config.json", mean);
    for length in [json!(2), json!(-1), json!("long")] {
        write("sentence_bert_config.json", json!({ "max_seq_length": length }));
        let error = SentenceConfig::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("above 2"), "{error}");
    }
}

/// The folder of the real model.
fn minilm() -> Option<PathBuf> {
    let folders = [std::env::var_os("PORTOLAN_MODEL_DIR").map(PathBuf::from), cache_folder(None).ok()];
    let folders = folders.into_iter().flatten().map(|folder| folder.join(MINILM));
    let found = folders.into_iter().find(|folder| folder.join("model.safetensors").is_file());
    if found.is_none() {
        // Not by `eprintln!`, which the test runner keeps back.
        let mut terminal = std::io::stderr();
        writeln!(terminal, "SKIPPED: no folder {MINILM}; run `portolan fetch minilm`").unwrap();
    }
    found
}

#[test]
fn real_sentences_agree_with_transformers() {
    let Some(folder) = minilm() else { return };
    let stream = stream();
    let encoder = SentenceEncoder::open(&stream, &folder, Precision::Exact, &mut |_, _| {}).unwrap();
    let path = golden("minilm.safetensors");
    let file = load::open(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let ids = texts(file.as_ref());
    assert!(ids.len() >= 8);
    let sentences: Vec<&str> =
        (0..ids.len()).map(|i| header["__metadata__"][format!("text.{i}")].as_str().unwrap()).collect();
    for (sentence, ids) in sentences.iter().zip(&ids) {
        assert_eq!(&encoder.encode(sentence).unwrap(), ids, "{sentence:?}");
    }
    let want = all(file.as_ref(), "embedding", ids.len());
    let together = encoder.embed(&sentences).unwrap();
    for ((sentence, got), want) in sentences.iter().zip(&together).zip(want.chunks(384)) {
        let alone = encoder.embed(&[sentence]).unwrap().remove(0);
        for got in [got, &alone] {
            let got: Vec<f64> = got.iter().map(|&x| f64::from(x)).collect();
            let distance = distance(&got, want);
            println!("{:.40}: {distance:.2e}", sentence);
            assert!(distance <= LIMIT, "{sentence:?}: {distance:e}");
        }
    }
    let cosine = |a: usize, b: usize| together[a].iter().zip(&together[b]).map(|(a, b)| a * b).sum::<f32>();
    assert!(cosine(0, 1) > cosine(0, 2) + 0.3, "a text is nearer to its paraphrase than to another");
}

#[test]
fn a_long_text_loses_its_end_and_keeps_what_stands_around_it() {
    let Some(folder) = minilm() else { return };
    let stream = stream();
    let encoder = SentenceEncoder::open(&stream, &folder, Precision::Exact, &mut |_, _| {}).unwrap();
    let long = encoder.encode(&"chart ".repeat(1000)).unwrap();
    assert_eq!((long.len(), encoder.max_tokens()), (256, 256));
    let [cls, sep] = ["[CLS]", "[SEP]"].map(|token| encoder.tokenizer().token_to_id(token).unwrap());
    let chart = encoder.tokenizer().token_to_id("chart").unwrap();
    assert!(long[0] == cls && long[255] == sep && long[1..255].iter().all(|&id| id == chart));
    assert_eq!(encoder.embed(&[&"chart ".repeat(1000)]).unwrap()[0].len(), 384);
}
