//! Text generation: prefill, decode, sampling, stop tokens.

mod options;
mod session;

pub use options::{Finish, GenerateOptions, Generated, Timing};
pub use session::Session;
