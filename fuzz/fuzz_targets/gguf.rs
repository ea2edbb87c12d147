//! Any bytes at all, read as a GGUF file: an error is fine, a panic or a flood of memory is not.

#![no_main]

#[path = "../entry.rs"]
mod entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(error) = entry::read_everything(bytes) {
        assert!(!error.to_string().contains('\n'));
    }
});
