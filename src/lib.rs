//! placeholder

pub mod fetch;
pub mod tokenizer;
