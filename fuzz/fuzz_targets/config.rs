//! Any bytes at all, read as a `config.json`.

#![no_main]

#[path = "../config.rs"]
mod config;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(Err(error)) = config::read_config(bytes) {
        assert!(!error.to_string().contains('\n'));
    }
});
