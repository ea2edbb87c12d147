//! Default bodies of the fused operators, composed from the kernel core. One operator, one file; each begins
//! with `begin`, which books the composition and its reason, and runs its parts through the launch.

mod add_rms_norm;
mod attention;
mod causal_conv1d;
mod dequantize;
mod dynamic_quantize;
mod embedding;
mod expert_ffn;
mod expert_parallel_ffn;
mod gated_delta_rule;
mod geglu;
mod grouped_gemm;
mod hadamard;
mod index_logits;
mod kv_cache_write;
mod layer_norm;
mod linear;
mod log_softmax;
mod merge_attention;
mod mla_decode;
mod moe_gate;
mod moe_permute;
mod moe_unpermute;
mod packed;
mod paged_attention;
mod parts;
mod quantize;
mod ragged;
mod recurrence;
mod rms_norm;
mod rope;
mod sample;
mod selective_scan;
mod softmax;
mod sort;
mod sparse_attention;
mod ssd_scan;
mod swiglu;
mod tokens;

pub use add_rms_norm::add_rms_norm;
pub use attention::attention;
pub use causal_conv1d::causal_conv1d;
pub use dequantize::dequantize;
pub use dynamic_quantize::dynamic_quantize;
pub use embedding::embedding;
pub use expert_ffn::expert_ffn;
pub use expert_parallel_ffn::expert_parallel_ffn;
pub use gated_delta_rule::gated_delta_rule;
pub use geglu::geglu;
pub use grouped_gemm::grouped_gemm;
pub use hadamard::hadamard;
pub use index_logits::index_logits;
pub use kv_cache_write::kv_cache_write;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use log_softmax::log_softmax;
pub use merge_attention::merge_attention;
pub use mla_decode::mla_decode;
pub use moe_gate::moe_gate;
pub use moe_permute::moe_permute;
pub use moe_unpermute::moe_unpermute;
pub use packed::{prepack, unpack};
pub use paged_attention::paged_attention;
pub use quantize::quantize;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use sample::sample;
pub use selective_scan::selective_scan;
pub use softmax::softmax;
pub use sort::sort;
pub use sparse_attention::sparse_attention;
pub use ssd_scan::ssd_scan;
pub use swiglu::swiglu;

use crate::backend::Support;
use crate::call::{CollectiveRef, SpecRef};
use crate::launch::Launch;
use crate::op::{Op, OpQuery};
use parts::Parts;
use portolan_ops::quant::WeightSpec;
use portolan_ops::{Result, Unsupported};

/// What a backend that leaves an operator to its default body answers for it, `why` being its reason;
/// `Support::No` for the few calls that have no composition.
pub fn support(query: &OpQuery<'_>, why: Unsupported) -> Support {
    match limit(&query.spec) {
        None => Support::Composed(why),
        Some(limit) => Support::No(limit),
    }
}

/// Why a call has no composition, if so: what [`support`] says and what [`begin`] refuses.
fn limit(spec: &SpecRef<'_>) -> Option<Unsupported> {
    const INDICES: Unsupported = Unsupported::Shape("more rows than an i32 index can name");
    let beyond = |rows: usize| (rows > i32::MAX as usize).then_some(INDICES);
    match spec {
        SpecRef::Linear(op) => weight_limit(op.weight()),
        SpecRef::GroupedGemm(op) => weight_limit(op.weight().one()),
        SpecRef::ExpertFfn(op) => weight_limit(op.gate_up().one()).or_else(|| weight_limit(op.down().one())),
        SpecRef::Collective(CollectiveRef::ExpertParallelFfn(op)) => limit(&SpecRef::ExpertFfn(op.network())),
        SpecRef::Embedding(op) => weight_limit(op.weight()),
        SpecRef::Dequantize(op) => weight_limit(op.weight()),
        SpecRef::KvCacheWrite(op) => {
            beyond(op.cache().dims()[..2].iter().product()).or_else(|| beyond(op.x().dims()[0]))
        }
        SpecRef::Attention(op) => beyond(op.query().tokens()),
        SpecRef::PagedAttention(op) => beyond(op.query().tokens()).or_else(|| beyond(op.k().dims()[0])),
        SpecRef::MlaDecode(op) => beyond(op.query().tokens()).or_else(|| beyond(op.cache().dims()[0])),
        SpecRef::SparseAttention(op) => {
            beyond(op.cache().dims()[..2].iter().product()).or_else(|| beyond(op.q().dims()[0]))
        }
        SpecRef::IndexLogits(op) => beyond(op.q().dims()[0]).or_else(|| beyond(op.k().dims()[0])),
        SpecRef::Sample(op) => beyond(op.logits().numel()),
        SpecRef::Quantize(_)
        | SpecRef::DynamicQuantize(_)
        | SpecRef::Hadamard(_)
        | SpecRef::MergeAttention(_)
        | SpecRef::Rope(_)
        | SpecRef::RmsNorm(_)
        | SpecRef::LayerNorm(_)
        | SpecRef::AddRmsNorm(_)
        | SpecRef::Softmax(_)
        | SpecRef::LogSoftmax(_)
        | SpecRef::Swiglu(_)
        | SpecRef::Geglu(_)
        | SpecRef::Sort(_)
        | SpecRef::MoeGate(_)
        | SpecRef::MoePermute(_)
        | SpecRef::MoeUnpermute(_) => None,
        SpecRef::CausalConv1d(op) => op.lens().and_then(|_| beyond(op.tokens())),
        SpecRef::SelectiveScan(op) => op.lens().and_then(|_| beyond(op.tokens())),
        SpecRef::SsdScan(op) => op.lens().and_then(|_| beyond(op.tokens())),
        SpecRef::GatedDeltaRule(op) => op.lens().and_then(|_| beyond(op.tokens())),
        // Packed forms are a backend's own, and the kernel core is what compositions are made of.
        _ => Some(Unsupported::NotImplemented),
    }
}

fn weight_limit(weight: &WeightSpec) -> Option<Unsupported> {
    match weight {
        WeightSpec::Dense(_) => None,
        WeightSpec::Quant(_) => None,
        _ => Some(Unsupported::NotImplemented),
    }
}

/// Books the composition of `op`, and gives what to compose it with.
///
/// # Errors
/// `Unsupported` for calls without a composition, and on streams that deny compositions.
fn begin<'a, 'l>(l: &'a Launch<'l>, op: &dyn Op, why: Unsupported) -> Result<Parts<'a, 'l>> {
    if let Some(limit) = limit(&op.query(l.determinism()).spec) {
        return Err(l.unsupported(op.op_name(), limit, "use a device with a native kernel for it"));
    }
    l.composed(op, why)?;
    Ok(Parts::new(l))
}
