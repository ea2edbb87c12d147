//! The few layers that models share: weights on a device and what they compute.

mod cache;
mod linear;
mod loader;
mod norm;

pub use cache::{Batch, KvCache};
pub use linear::{Embedding, Linear};
pub use loader::{Loader, Precision, Progress};
pub use norm::RmsNorm;
