//! Any bytes at all, as an operator and its arguments: refused, or accepted with a cost and a reference.

#![no_main]

#[path = "../operators.rs"]
mod operators;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    operators::build(bytes);
});
