//! Any bytes at all, as an operator and its arguments: refused, or accepted with a cost and a reference.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    portolan_conformance::check_arguments(bytes);
});
