//! GGUF files written to do harm: each is refused with a message that names the harm, quickly and in bounded memory.

use crate::corpus::read_everything;
use crate::writer::{GgufWriter, array, every_type, string, value};
use proptest::prelude::*;

/// Name, bytes, and what the message must say.
pub(crate) fn cases() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let new = GgufWriter::new;
    let huge = 1u64 << 60;
    let one = |dims: &[u64], kind: u32, offset: u64, data: usize| {
        new().line(b"w", dims, kind, offset).tensor("data", &[data as u64 / 4], 0, &vec![0; data]).bytes()
    };
    let lone = |dims: &[u64], kind: u32, offset: u64| new().line(b"w", dims, kind, offset).bytes();
    let mut deep = array(4, 1, &[0; 4])[4..].to_vec();
    for _ in 0..200 {
        deep = array(9, 1, &deep)[4..].to_vec();
    }
    let deep = value(9, &deep);
    vec![
        ("empty", Vec::new(), "needs 4 bytes"),
        ("magic", new().magic(b"GGML").bytes(), "starts with `GGUF`"),
        ("version_1", new().version(1).bytes(), "version 2 or 3"),
        ("version_4", new().version(4).bytes(), "is gguf version 4"),
        ("big_endian", new().version(3u32.swap_bytes()).bytes(), "big-endian"),
        ("tensor_count", new().counts(huge, 0).bytes(), "the tensor list needs"),
        ("entry_count", new().counts(0, u64::MAX).bytes(), "the metadata needs"),
        (
            "key_length",
            new().align(1).counts(0, 1).bytes().into_iter().chain([0xFF; 20]).collect(),
            "a metadata key needs",
        ),
        ("key_bytes", new().entry("\u{1}key", value(99, &[0; 8])).bytes(), "`\\u{1}key` has type 99"),
        ("key_twice", new().u32("k", 1).u32("k", 2).bytes(), "key `k` occurs twice"),
        ("key_long", new().u32(&"k".repeat(70_000), 1).bytes(), "a metadata key is a string of 70000 bytes"),
        (
            "string_length",
            new().entry("k", value(8, &huge.to_le_bytes())).bytes(),
            "the value of key `k` needs",
        ),
        ("string_utf8", new().entry("k", value(8, &string(&[0xFF, 0xFE]))).bytes(), "not valid utf-8"),
        ("bool_2", new().entry("k", value(7, &[2])).bytes(), "bool of value 2"),
        ("array_count", new().entry("k", array(4, huge, &[0; 64])).bytes(), "the value of key `k` needs"),
        (
            "array_strings",
            new().entry("k", array(8, huge / 8, &[0; 64])).bytes(),
            "the value of key `k` needs",
        ),
        (
            "array_arrays",
            new().entry("k", array(9, u64::MAX, &[0; 64])).bytes(),
            "the value of key `k` needs",
        ),
        ("array_type", new().entry("k", array(13, 1, &[0; 64])).bytes(), "has type 13"),
        ("array_nesting", new().entry("k", deep).bytes(), "nests arrays deeper than 4"),
        ("alignment_0", new().u32("general.alignment", 0).bytes(), "wanted a power of two"),
        ("alignment_3", new().u32("general.alignment", 3).bytes(), "wanted a power of two"),
        ("alignment_type", new().text("general.alignment", "32").bytes(), "is string \"32\", wanted u32"),
        (
            "alignment_2_31",
            new().u32("general.alignment", 1 << 31).line(b"w", &[1], 0, 0).bytes(),
            "tensor `w` needs 4 bytes at 2147483648",
        ),
        (
            "tensor_twice",
            new().tensor("w", &[1], 0, &[0; 4]).tensor("w", &[1], 0, &[0; 4]).bytes(),
            "`w` occurs twice",
        ),
        ("tensor_rank", lone(&[1; 5], 0, 0), "has 5 dimensions"),
        ("tensor_overflow", lone(&[huge, huge, 32, 1], 2, 0), "too many elements"),
        ("tensor_overflow_beside_0", lone(&[huge, huge, 0], 0, 0), "too many elements"),
        ("tensor_max", lone(&[u64::MAX], 0, 0), "too many elements"),
        ("tensor_large", lone(&[huge / 2], 0, 0), "tensor `w` needs"),
        ("tensor_rows", lone(&[33], 2, 0), "rows of 33, q4_0 needs a multiple of 32"),
        ("tensor_rows_k", lone(&[128], 12, 0), "q4_k needs a multiple of 256"),
        ("tensor_offset", lone(&[1], 0, u64::MAX - 31), "tensor `w` needs"),
        ("tensor_unaligned", lone(&[1], 0, 1), "not a multiple of 32"),
        ("tensor_beyond", one(&[64], 0, 64, 128), "tensor `w` needs 256 bytes"),
        ("tensor_overlap", one(&[16], 0, 32, 128), "overlaps tensor `w`"),
        ("tensor_name_utf8", new().line(&[0x80], &[1], 0, 0).bytes(), "a tensor name is not valid utf-8"),
        ("tensor_name_long", new().line(&[b'a'; 300], &[1], 0, 0).bytes(), "string of 300 bytes"),
        (
            "type_unsupported",
            new().tensor("w", &[256], 10, &[0; 84]).bytes(),
            "`w` is q2_k, which is not supported",
        ),
        ("type_unknown", lone(&[256], 77, 0), "`w` is type 77 (unknown), which is not supported"),
    ]
}

#[test]
fn each_harm_is_refused_and_named() {
    for (name, bytes, says) in cases() {
        let error = read_everything(&bytes).map(|_| name).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: `{error}` does not say `{says}`");
    }
}

#[test]
fn a_file_of_every_type_is_read_whole() {
    // 11 tensors; 5- and 6-bit codes are held in bytes.
    let held =
        12 + 6 + 6 + 18 + 20 + (32 + 2) + (32 + 4) + 34 + (128 + 16 + 4) + (256 + 16 + 4) + (256 + 16 + 2);
    assert_eq!(read_everything(&every_type().bytes()).unwrap(), held);
    assert_eq!(read_everything(&every_type().version(2).bytes()).unwrap(), held);
}

#[test]
fn other_alignments_and_tensors_without_elements_are_read() {
    let file = GgufWriter::new().u32("general.alignment", 8).align(8);
    let bytes = file
        .tensor("a", &[1], 0, &[0; 4])
        .tensor("none", &[32, 0], 2, &[])
        .tensor("b", &[], 0, &[0; 4])
        .bytes();
    assert_eq!(read_everything(&bytes).unwrap(), 8);
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let bytes = every_type().bytes();
    for len in 0..bytes.len() {
        assert!(read_everything(&bytes[..len]).is_err(), "cut at {len} of {}", bytes.len());
    }
}

#[test]
fn a_sparse_file_of_any_length_does_not_make_the_head_grow_with_it() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, count) in [(0, 1u64 << 38), (8, 1 << 35), (9, 1 << 34), (10, 1 << 35)] {
        let path = dir.path().join("sparse.gguf");
        std::fs::write(&path, GgufWriter::new().entry("k", array(kind, count, &[])).bytes()).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        let error = portolan::load::open(&path).unwrap_err().to_string();
        assert!(error.contains("takes the head of the file beyond"), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn flipped_bits_are_read_or_refused_without_a_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u32..8), 1..6),
    ) {
        let mut bytes = every_type().bytes();
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        let _ = read_everything(&bytes);
    }

    #[test]
    fn overwritten_fields_are_read_or_refused_without_a_panic(
        at in any::<prop::sample::Index>(), field in prop_oneof![
            Just(u64::MAX), Just(1 << 60), Just(1 << 32), Just(0), Just(1 << 63), any::<u64>()],
    ) {
        let mut bytes = every_type().bytes();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&field.to_le_bytes());
        let _ = read_everything(&bytes);
    }

    #[test]
    fn any_bytes_after_a_magic_number_are_refused_without_a_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tail);
        let _ = read_everything(&bytes);
    }
}
