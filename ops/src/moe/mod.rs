//! Mixture of experts: which experts a token goes to, the rows of each expert side by side, and back.

pub mod moe_gate;
pub mod moe_permute;
pub mod moe_unpermute;

pub use moe_gate::{GateScore, GroupScore, MoeGateSpec};
pub use moe_permute::MoePermuteSpec;
pub use moe_unpermute::MoeUnpermuteSpec;
