//! Any bytes at all, read as a safetensors file, and as the index of a model in several files.

#![no_main]

#[path = "../safetensors.rs"]
mod safetensors;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // Text is an index, anything else a file: a file starts with the eight bytes of a length.
    let outcome = if bytes.first().is_some_and(|&b| b == b'{') {
        let scratch = std::env::temp_dir().join(format!("portolan-fuzz-{}", std::process::id()));
        assert!(std::fs::create_dir_all(&scratch).is_ok());
        safetensors::read_index(bytes, &scratch)
    } else {
        safetensors::read_file(bytes)
    };
    if let Err(error) = outcome {
        assert!(!error.to_string().contains('\n'));
    }
});
