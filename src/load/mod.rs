//! Weights and configurations from files, on the host: GGUF, safetensors, Hugging Face folders.
//!
//! [`open`] picks the format; every format is a [`WeightSource`]. Files are read with `pread` into memory of
//! our own and everything in them is taken for hostile: a bad file is a [`LoadError`], never a panic.

pub mod config;
mod config_only;
mod error;
mod form;
pub mod gguf;
mod json;
pub mod names;
mod part;
mod refine;
pub mod safetensors;
mod source;
mod weights;

pub use config_only::ConfigOnly;
pub use error::{LoadError, Result};
pub use form::WeightForm;
pub(crate) use part::Part;
pub use source::{Bytes, FileSource, Source};
pub use weights::{HostQuant, HostWeight, SourceMetadata, WeightSource, open, open_specs};

#[cfg(not(target_endian = "little"))]
compile_error!("weights are kept as little-endian bytes, which this target would misread");
