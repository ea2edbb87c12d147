//! Text generation: prefill, decode, sampling, stop tokens.

mod options;
mod perplexity;
mod session;

pub use options::{Finish, GenerateOptions, Generated, Timing};
pub use perplexity::perplexity;
pub use session::Session;
