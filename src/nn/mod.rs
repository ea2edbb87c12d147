//! The few layers that models share: weights on a device and what they compute.

mod attention;
mod backbone;
mod batch;
mod cache;
mod conv;
mod decoder;
mod ffn;
mod layout;
mod linear;
mod loader;
mod moe;
mod norm;

pub use attention::Attention;
pub use backbone::{Backbone, BackboneConfig};
pub use batch::{Batch, Sequences};
pub use cache::{Cache, KvCache, LatentCache, LayerState, Recurrence};
pub use conv::CausalConv;
pub use decoder::Decoder;
pub use ffn::Ffn;
pub use layout::{Heads, Layout};
pub use linear::{Embedding, Linear};
pub use loader::{Loader, Precision, Progress, Share};
pub use moe::{MoeFfn, MoeLayer, SharedExpert};
pub use norm::{GroupRmsNorm, LayerNorm, RmsNorm};
