//! The CPU's own form of each operator: a plan (what the kernel accepts) and a launch. The same plan answers
//! `support()`, so the answer cannot drift from what runs.

pub(crate) mod add_rms_norm;
pub(crate) mod args;
pub(crate) mod attention;
pub(crate) mod binary;
pub(crate) mod cast;
pub(crate) mod causal_conv1d;
pub(crate) mod compare;
pub(crate) mod copy;
pub(crate) mod dequantize;
pub(crate) mod dynamic_quantize;
pub(crate) mod embedding;
pub(crate) mod expert_ffn;
pub(crate) mod fill;
pub(crate) mod gated_delta_rule;
pub(crate) mod gather;
pub(crate) mod geglu;
pub(crate) mod gemm;
pub(crate) mod grouped_gemm;
pub(crate) mod hadamard;
pub(crate) mod index_logits;
pub(crate) mod kv_cache_write;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod log_softmax;
pub(crate) mod merge_attention;
pub(crate) mod mla_decode;
pub(crate) mod moe_gate;
pub(crate) mod moe_permute;
pub(crate) mod moe_unpermute;
pub(crate) mod paged_attention;
pub(crate) mod prepack;
pub(crate) mod quantize;
pub(crate) mod random;
pub(crate) mod reduce;
pub(crate) mod rms_norm;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod sample;
pub(crate) mod scan;
pub(crate) mod scatter;
pub(crate) mod select;
pub(crate) mod selective_scan;
pub(crate) mod softmax;
pub(crate) mod sort;
pub(crate) mod sparse_attention;
pub(crate) mod ssd_scan;
pub(crate) mod swiglu;
pub(crate) mod top_k;
pub(crate) mod unary;
pub(crate) mod unpack;

use portolan_core::{CollectiveRef, OpQuery, SpecRef, Support, compose};
use portolan_ops::Unsupported;
use portolan_ops::attention::AttentionQuery;

/// What launching would do.
pub(crate) fn support(query: &OpQuery<'_>) -> Support {
    match query.spec {
        SpecRef::Attention(spec) => attention_support(spec.query()),
        SpecRef::PagedAttention(spec) => attention_support(spec.query()),
        SpecRef::MlaDecode(spec) => attention_support(spec.query()),
        SpecRef::MergeAttention(spec) => native_if(crate::attention::plan_merge(spec)),
        SpecRef::SparseAttention(spec) => native_if(sparse_attention::plan(spec)),
        SpecRef::IndexLogits(spec) => native_if(crate::attention::plan_index(spec)),
        SpecRef::SelectiveScan(spec) => native_if(crate::ssm::plan_selective_scan(spec)),
        SpecRef::SsdScan(spec) => native_if(crate::ssm::plan_ssd_scan(spec)),
        SpecRef::GatedDeltaRule(spec) => native_if(crate::ssm::plan_gated_delta_rule(spec)),
        SpecRef::Collective(CollectiveRef::ExpertParallelFfn(_)) => {
            compose::support(query, Unsupported::NotImplemented)
        }
        SpecRef::Custom(op) => match crate::custom::plan(op) {
            Ok(_) => Support::Native,
            Err((why, _)) => Support::No(why),
        },
        _ => Support::Native,
    }
}

fn attention_support(query: &AttentionQuery) -> Support {
    native_if(crate::attention::plan(query))
}

fn native_if(plan: Result<(), Unsupported>) -> Support {
    match plan {
        Ok(()) => Support::Native,
        Err(why) => Support::Composed(why),
    }
}
