//! Mixture of experts: which experts a token goes to, the rows of each expert side by side, their products, and
//! back.

pub mod expert_ffn;
mod expert_ffn_cases;
pub mod experts;
pub mod grouped_gemm;
pub mod moe_gate;
pub mod moe_permute;
pub mod moe_unpermute;

pub use expert_ffn::{ExpertFfnSpec, GateUpOrder};
pub use experts::{ExpertNames, ExpertsSpec};
pub use grouped_gemm::GroupedGemmSpec;
pub use moe_gate::{GateScore, GroupScore, MoeGateSpec};
pub use moe_permute::MoePermuteSpec;
pub use moe_unpermute::MoeUnpermuteSpec;
