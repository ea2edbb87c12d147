//! Every block type against the `gguf` Python package: same bits in f32 (`tests/golden/gguf_blocks.py`).

use portolan::load::{self, gguf};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn every_block_type_dequantizes_to_the_bits_of_the_gguf_package() {
    let blocks = load::open(&golden("gguf_blocks.gguf")).unwrap();
    let expected = load::open(&golden("gguf_blocks.safetensors")).unwrap();
    assert_eq!(blocks.names().len(), gguf::GgmlType::LOADABLE.len());
    for name in blocks.names() {
        assert_eq!(blocks.stored_as(name).unwrap(), name);
        let (got, want) = (blocks.load(name).unwrap(), expected.load(name).unwrap());
        assert_eq!(got.shape(), want.shape(), "{name}");
        let pairs = got.to_f32().into_iter().zip(want.to_f32());
        for (i, (got, want)) in pairs.enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{name}[{i}]: {got} is not {want}");
        }
    }
}

#[test]
fn metadata_of_a_file_written_by_another_program_is_read() {
    let file = gguf::Gguf::open(&golden("gguf_blocks.gguf")).unwrap();
    let m = file.metadata();
    assert_eq!(m.string("general.architecture").unwrap(), "blocks");
    assert_eq!(m.strings("test.words").unwrap(), ["a", "", "ünï", "日本"]);
    assert_eq!(m.i32s("test.numbers").unwrap(), [1, -2, 3]);
    assert_eq!(m.f32("test.float").unwrap(), 0.5);
    assert!(m.bool("test.flag").unwrap());
}
