//! Mixture of experts: which experts a token goes to, and how much each of them counts.

pub mod moe_gate;

pub use moe_gate::{GateScore, GroupScore, MoeGateSpec};
