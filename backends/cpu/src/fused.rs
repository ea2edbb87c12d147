//! Fused operators that the CPU overrides, each by its file in `op/`; the others are composed.

use crate::{CpuBackend, op};
use portolan_core::{Consumer, CustomOp, FusedOps, Launch, OpKind, Ordinal, Packing, call};
use portolan_ops::{Result, WeightSpec};

impl FusedOps for CpuBackend {
    fn linear(&self, launch: &Launch<'_>, op: &call::Linear) -> Result<()> {
        op::linear::launch(launch, op)
    }
    fn prepack(&self, launch: &Launch<'_>, op: &call::Prepack) -> Result<()> {
        op::prepack::launch(launch, op)
    }
    fn unpack(&self, launch: &Launch<'_>, op: &call::Unpack) -> Result<()> {
        op::unpack::launch(launch, op)
    }
    fn dequantize(&self, launch: &Launch<'_>, op: &call::Dequantize) -> Result<()> {
        op::dequantize::launch(launch, op)
    }
    fn quantize(&self, launch: &Launch<'_>, op: &call::Quantize) -> Result<()> {
        op::quantize::launch(launch, op)
    }
    fn dynamic_quantize(&self, launch: &Launch<'_>, op: &call::DynamicQuantize) -> Result<()> {
        op::dynamic_quantize::launch(launch, op)
    }
    fn grouped_gemm(&self, launch: &Launch<'_>, op: &call::GroupedGemm) -> Result<()> {
        op::grouped_gemm::launch(launch, op)
    }
    fn expert_ffn(&self, launch: &Launch<'_>, op: &call::ExpertFfn) -> Result<()> {
        op::expert_ffn::launch(launch, op)
    }
    fn hadamard(&self, launch: &Launch<'_>, op: &call::Hadamard) -> Result<()> {
        op::hadamard::launch(launch, op)
    }
    fn embedding(&self, launch: &Launch<'_>, op: &call::Embedding) -> Result<()> {
        op::embedding::launch(launch, op)
    }
    fn rms_norm(&self, launch: &Launch<'_>, op: &call::RmsNorm) -> Result<()> {
        op::rms_norm::launch(launch, op)
    }
    fn layer_norm(&self, launch: &Launch<'_>, op: &call::LayerNorm) -> Result<()> {
        op::layer_norm::launch(launch, op)
    }
    fn add_rms_norm(&self, launch: &Launch<'_>, op: &call::AddRmsNorm) -> Result<()> {
        op::add_rms_norm::launch(launch, op)
    }
    fn softmax(&self, launch: &Launch<'_>, op: &call::Softmax) -> Result<()> {
        op::softmax::launch(launch, op)
    }
    fn log_softmax(&self, launch: &Launch<'_>, op: &call::LogSoftmax) -> Result<()> {
        op::log_softmax::launch(launch, op)
    }
    fn swiglu(&self, launch: &Launch<'_>, op: &call::Swiglu) -> Result<()> {
        op::swiglu::launch(launch, op)
    }
    fn geglu(&self, launch: &Launch<'_>, op: &call::Geglu) -> Result<()> {
        op::geglu::launch(launch, op)
    }
    fn sort(&self, launch: &Launch<'_>, op: &call::Sort) -> Result<()> {
        op::sort::launch(launch, op)
    }
    fn moe_gate(&self, launch: &Launch<'_>, op: &call::MoeGate) -> Result<()> {
        op::moe_gate::launch(launch, op)
    }
    fn moe_permute(&self, launch: &Launch<'_>, op: &call::MoePermute) -> Result<()> {
        op::moe_permute::launch(launch, op)
    }
    fn moe_unpermute(&self, launch: &Launch<'_>, op: &call::MoeUnpermute) -> Result<()> {
        op::moe_unpermute::launch(launch, op)
    }
    fn causal_conv1d(&self, launch: &Launch<'_>, op: &call::CausalConv1d) -> Result<()> {
        op::causal_conv1d::launch(launch, op)
    }
    fn selective_scan(&self, launch: &Launch<'_>, op: &call::SelectiveScan) -> Result<()> {
        op::selective_scan::launch(launch, op)
    }
    fn ssd_scan(&self, launch: &Launch<'_>, op: &call::SsdScan) -> Result<()> {
        op::ssd_scan::launch(launch, op)
    }
    fn gated_delta_rule(&self, launch: &Launch<'_>, op: &call::GatedDeltaRule) -> Result<()> {
        op::gated_delta_rule::launch(launch, op)
    }
    fn sample(&self, launch: &Launch<'_>, op: &call::Sample) -> Result<()> {
        op::sample::launch(launch, op)
    }
    fn rope(&self, launch: &Launch<'_>, op: &call::Rope) -> Result<()> {
        op::rope::launch(launch, op)
    }
    fn attention(&self, launch: &Launch<'_>, op: &call::Attention) -> Result<()> {
        op::attention::launch(launch, op)
    }
    fn paged_attention(&self, launch: &Launch<'_>, op: &call::PagedAttention) -> Result<()> {
        op::paged_attention::launch(launch, op)
    }
    fn mla_decode(&self, launch: &Launch<'_>, op: &call::MlaDecode) -> Result<()> {
        op::mla_decode::launch(launch, op)
    }
    fn sparse_attention(&self, launch: &Launch<'_>, op: &call::SparseAttention) -> Result<()> {
        op::sparse_attention::launch(launch, op)
    }
    fn index_logits(&self, launch: &Launch<'_>, op: &call::IndexLogits) -> Result<()> {
        op::index_logits::launch(launch, op)
    }
    fn merge_attention(&self, launch: &Launch<'_>, op: &call::MergeAttention) -> Result<()> {
        op::merge_attention::launch(launch, op)
    }
    fn kv_cache_write(&self, launch: &Launch<'_>, op: &call::KvCacheWrite) -> Result<()> {
        op::kv_cache_write::launch(launch, op)
    }
    fn packing(&self, _device: Ordinal, weight: &WeightSpec, consumer: Consumer<'_>) -> Option<Packing> {
        let product = matches!(consumer.op, OpKind::Linear | OpKind::GroupedGemm | OpKind::ExpertFfn);
        product.then(|| op::prepack::packing(self.isa, weight)).flatten()
    }
    fn custom(&self, launch: &Launch<'_>, op: &CustomOp) -> Result<()> {
        crate::custom::launch(launch, op)
    }
}
