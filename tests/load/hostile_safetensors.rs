//! Safetensors files and indexes written to do harm: each is refused with a message that names the harm.

use crate::writer::safetensors;
use portolan::load::safetensors::SafetensorsModel;
use portolan::load::{Bytes, LoadError, WeightSource, open};
use proptest::prelude::*;
use std::path::Path;

const TWO: &str = r#"{"__metadata__":{"format":"pt"},
"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]},
"c":{"dtype":"BOOL","shape":[2],"data_offsets":[30,32]}}"#;

fn read_everything(bytes: Vec<u8>) -> Result<usize, LoadError> {
    let model = SafetensorsModel::parse(Box::new(Bytes::new("bytes", bytes)))?;
    let mut held = 0;
    for name in model.names() {
        model.stored_as(name)?;
        held += model.load(name)?.bytes();
    }
    Ok(held)
}

fn header(text: &str) -> Vec<u8> {
    safetensors(text, &[0; 32])
}

#[test]
fn each_harm_is_refused_and_named() {
    let tensor = |dtype: &str, shape: &str, from: u64, to: u64| {
        header(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}}}"#))
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "the header's length needs 8 bytes"),
        ("length", [0xFF; 64].to_vec(), "the header needs"),
        ("long", [&(1u64 << 26).to_le_bytes()[..], &vec![b' '; 1 << 26]].concat(), "at most"),
        ("not json", header("{"), "not safetensors"),
        ("array", header("[]"), "not safetensors"),
        ("nesting", header(&"[".repeat(100_000)), "not safetensors"),
        ("nested entry", header(&format!(r#"{{"w":{}}}"#, "[".repeat(100_000))), "not safetensors"),
        (
            "utf-8",
            safetensors("{}", &[]).into_iter().map(|b| b.wrapping_add(u8::from(b == b'{') * 0x80)).collect(),
            "not safetensors",
        ),
        ("hole", tensor("F32", "[4]", 16, 32), "not safetensors"),
        ("size", tensor("F32", "[4]", 0, 32), "not safetensors"),
        ("order", tensor("F32", "[4]", 16, 0), "not safetensors"),
        ("overflow", tensor("F32", "[4294967296,4294967296,4]", 0, 32), "not safetensors"),
        ("beyond", tensor("F32", "[16]", 0, 64), "the tensors needs 64 bytes"),
        ("left over", tensor("F32", "[4]", 0, 16), "16 bytes follow"),
        ("dtype", tensor("F7", "[8]", 0, 32), "not safetensors"),
        ("unsupported", tensor("U64", "[4]", 0, 32), "`w` is U64, which is not supported"),
        ("rank", tensor("F32", "[8,1,1,1,1,1,1,1,1]", 0, 32), "extents that cannot be"),
        ("shape", tensor("F32", "[-8]", 0, 32), "not safetensors"),
        ("metadata", header(r#"{"__metadata__":{"a":1}}"#), "not safetensors"),
        (
            "twice",
            header(
                r#"{"w":{"dtype":"F16","shape":[16],"data_offsets":[0,32]},"w":{"dtype":"BF16","shape":[16],"data_offsets":[0,32]}}"#,
            ),
            "`w` occurs twice",
        ),
        (
            "bool",
            safetensors(r#"{"w":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}"#, &[1, 2]),
            "bools other than",
        ),
    ];
    for (name, bytes, says) in cases {
        let error = read_everything(bytes).map(|_| name).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: `{error}` does not say `{says}`");
        assert!(error.len() < 400 && !error.contains('\n'), "{name}: {error}");
    }
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let bytes = header(TWO);
    assert_eq!(read_everything(bytes.clone()).unwrap(), 32);
    for len in 0..bytes.len() {
        assert!(read_everything(bytes[..len].to_vec()).is_err(), "cut at {len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn flipped_bits_are_read_or_refused_without_a_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u32..8), 1..4),
    ) {
        let mut bytes = header(TWO);
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        let _ = read_everything(bytes);
    }
}

/// Names and contents of a folder's files.
type Files<'a> = &'a [(&'a str, &'a [u8])];

fn folder(files: Files<'_>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn a_model_in_several_files_is_read_as_one() {
    let one = safetensors(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[7]);
    let two = safetensors(r#"{"b":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#, &[8, 9]);
    let index = br#"{"metadata":{"total_size":3},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    let dir =
        folder(&[("config.json", b"{}"), (INDEX, index), ("1.safetensors", &one), ("2.safetensors", &two)]);
    let model = open(dir.path()).unwrap();
    assert_eq!(model.names(), ["a", "b"]);
    assert_eq!(model.load("b").unwrap().to_f32(), [8.0, 9.0]);
    assert!(model.load("c").unwrap_err().to_string().contains("no tensor `c`"));
}

#[test]
fn an_index_may_name_files_of_its_own_folder_only() {
    let outside = tempfile::tempdir().unwrap();
    let file = outside.path().join("x.safetensors");
    std::fs::write(&file, header(TWO)).unwrap();
    let sub = outside.path().join("model");
    std::fs::create_dir(&sub).unwrap();
    std::fs::write(sub.join("config.json"), "{}").unwrap();
    for name in ["../x.safetensors", file.to_str().unwrap(), "", ".", "..", "./x", "a/b", "a\\b", "x\0"] {
        let index = serde_json::json!({ "weight_map": { "a": name } });
        std::fs::write(sub.join(INDEX), index.to_string()).unwrap();
        let error = open(&sub).unwrap_err().to_string();
        assert!(error.contains("wanted a file name in the same folder"), "{name:?}: {error}");
    }
}

#[test]
fn folders_that_are_no_models_are_refused_with_what_is_missing() {
    let index = br#"{"weight_map":{"a":"1.safetensors","z":"1.safetensors"}}"#;
    let one = safetensors(r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[7]);
    let cases: [(Files<'_>, &str); 6] = [
        (&[], "a folder without config.json"),
        (&[("config.json", b"{}")], "neither model.safetensors nor"),
        (&[("config.json", b"{"), ("model.safetensors", &one)], "not valid json"),
        (&[("config.json", b"{}"), (INDEX, b"{}")], "key `weight_map` is missing"),
        (&[("config.json", b"{}"), (INDEX, b"{\"weight_map\":[]}")], "not an object"),
        (
            &[("config.json", b"{}"), (INDEX, index), ("1.safetensors", &one)],
            "tensor `z` is not in `1.safetensors`",
        ),
    ];
    for (files, says) in cases {
        let error = open(folder(files).path()).unwrap_err().to_string();
        assert!(error.contains(says), "`{error}` does not say `{says}`");
    }
    assert!(open(Path::new("/no/such/file")).unwrap_err().to_string().starts_with("/no/such/file: cannot"));
}

#[test]
fn every_type_with_a_host_form_is_loaded() {
    for (dtype, bytes) in [
        ("F64", 16),
        ("F32", 8),
        ("F16", 4),
        ("BF16", 4),
        ("I64", 16),
        ("I32", 8),
        ("I8", 2),
        ("U8", 2),
        ("BOOL", 2),
    ] {
        let text = format!(r#"{{"w":{{"dtype":"{dtype}","shape":[2],"data_offsets":[0,{bytes}]}}}}"#);
        assert_eq!(read_everything(safetensors(&text, &vec![0; bytes])).unwrap(), bytes, "{dtype}");
    }
}
