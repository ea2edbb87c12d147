//! The one list of operators, and each operator bound to tensors.
//!
//! `for_each_op!` below is the only place that enumerates operators: kinds, queries, backend methods,
//! dispatch and the coverage of conformance all come from it.

/// Calls a macro with the table of operators: kernel core first, then fused operators. Each row is a kind
/// (also the name of the bound type), its contract, and the backend method that launches it.
#[macro_export]
macro_rules! for_each_op {
    ($with:path) => {
        $with! {
            kernel {
                /// Matrix product.
                Gemm, portolan_ops::kernel::GemmSpec, gemm;
                /// A function of every element.
                Unary, portolan_ops::kernel::UnarySpec, unary;
                /// A function of two broadcast operands.
                Binary, portolan_ops::kernel::BinarySpec, binary;
                /// A comparison of two broadcast operands.
                Compare, portolan_ops::kernel::CompareSpec, compare;
                /// One of two values by a condition.
                Select, portolan_ops::kernel::SelectSpec, select;
                /// Sums, extrema and their places over dimensions.
                Reduce, portolan_ops::kernel::ReduceSpec, reduce;
                /// Cumulative sums, products, maxima and the linear recurrence.
                Scan, portolan_ops::kernel::ScanSpec, scan;
                /// The largest entries of every row.
                TopK, portolan_ops::kernel::TopKSpec, top_k;
                /// Entries by index.
                Gather, portolan_ops::kernel::GatherSpec, gather;
                /// Entries written or added at indices.
                Scatter, portolan_ops::kernel::ScatterSpec, scatter;
                /// A copy between any two layouts.
                Copy, portolan_ops::kernel::CopySpec, copy_strided;
                /// A change of element type.
                Cast, portolan_ops::kernel::CastSpec, cast;
                /// A constant.
                Fill, portolan_ops::kernel::FillSpec, fill;
                /// Random numbers, a pure function of seed and counter.
                Random, portolan_ops::kernel::RandomSpec, random;
            }
            fused {
                /// Linear layer over any weight.
                Linear, portolan_ops::quant::LinearSpec, linear;
                /// A weight into the device's own form.
                Prepack, portolan_ops::quant::PrepackSpec, prepack;
                /// A packed weight back into ordinary tensors.
                Unpack, portolan_ops::quant::UnpackSpec, unpack;
                /// Quantized weight to floats.
                Dequantize, portolan_ops::quant::DequantizeSpec, dequantize;
                /// Floats to codes by given scales.
                Quantize, portolan_ops::quant::QuantizeSpec, quantize;
                /// Floats to codes and the scales found for them.
                DynamicQuantize, portolan_ops::quant::DynamicQuantizeSpec, dynamic_quantize;
                /// Hadamard transform of blocks.
                Hadamard, portolan_ops::quant::HadamardSpec, hadamard;
                /// Rows of a weight by index.
                Embedding, portolan_ops::embedding::EmbeddingSpec, embedding;
                /// Rotary position embedding.
                Rope, portolan_ops::rope::RopeSpec, rope;
                /// Root-mean-square normalisation.
                RmsNorm, portolan_ops::norm::RmsNormSpec, rms_norm;
                /// Layer normalisation.
                LayerNorm, portolan_ops::norm::LayerNormSpec, layer_norm;
                /// Residual sum and root-mean-square normalisation.
                AddRmsNorm, portolan_ops::norm::AddRmsNormSpec, add_rms_norm;
                /// Softmax of every row.
                Softmax, portolan_ops::norm::SoftmaxSpec, softmax;
                /// The logarithm of softmax of every row.
                LogSoftmax, portolan_ops::norm::LogSoftmaxSpec, log_softmax;
                /// Gated unit with SiLU.
                Swiglu, portolan_ops::activation::SwigluSpec, swiglu;
                /// Gated unit with GELU.
                Geglu, portolan_ops::activation::GegluSpec, geglu;
                /// Stable sort of every row.
                Sort, portolan_ops::sort::SortSpec, sort;
                /// The experts of every token, and their weights.
                MoeGate, portolan_ops::moe::MoeGateSpec, moe_gate;
                /// Rows of tokens to their experts.
                MoePermute, portolan_ops::moe::MoePermuteSpec, moe_permute;
                /// Products of every expert's rows with its weight.
                GroupedGemm, portolan_ops::moe::GroupedGemmSpec, grouped_gemm;
                /// The feed-forward network of a mixture of experts.
                ExpertFfn, portolan_ops::moe::ExpertFfnSpec, expert_ffn;
                /// Rows of experts back to their tokens.
                MoeUnpermute, portolan_ops::moe::MoeUnpermuteSpec, moe_unpermute;
                /// Attention over a contiguous cache.
                Attention, portolan_ops::attention::AttentionSpec, attention;
                /// Attention over a paged cache.
                PagedAttention, portolan_ops::attention::PagedAttentionSpec, paged_attention;
                /// Absorbed latent attention over a cache that all heads share.
                MlaDecode, portolan_ops::attention::MlaDecodeSpec, mla_decode;
                /// Latent attention over listed entries.
                SparseAttention, portolan_ops::attention::SparseAttentionSpec, sparse_attention;
                /// How much each token wants each key; its top-k selects keys.
                IndexLogits, portolan_ops::attention::IndexLogitsSpec, index_logits;
                /// Partial attention over disjoint keys, merged.
                MergeAttention, portolan_ops::attention::MergeAttentionSpec, merge_attention;
                /// Keys or values into a cache.
                KvCacheWrite, portolan_ops::attention::KvCacheWriteSpec, kv_cache_write;
                /// Short causal convolution of every channel.
                CausalConv1d, portolan_ops::ssm::CausalConv1dSpec, causal_conv1d;
                /// Selective state-space recurrence.
                SelectiveScan, portolan_ops::ssm::SelectiveScanSpec, selective_scan;
                /// State-space recurrence of heads, by chunks.
                SsdScan, portolan_ops::ssm::SsdScanSpec, ssd_scan;
                /// Linear attention with the gated delta rule.
                GatedDeltaRule, portolan_ops::ssm::GatedDeltaRuleSpec, gated_delta_rule;
                /// The next token of every row of logits.
                Sample, portolan_ops::sample::SampleSpec, sample;
            }
        }
    };
}
pub use for_each_op;

pub(crate) mod all_gather;
pub(crate) mod all_reduce;
pub(crate) mod all_to_all;
mod attention;
mod barrier;
pub(crate) mod binary;
mod broadcast;
pub(crate) mod causal_conv1d;
mod collective;
pub(crate) mod compare;
pub(crate) mod copy;
pub(crate) mod embedding;
mod exchange;
pub(crate) mod expert_ffn;
mod expert_parallel_ffn;
pub(crate) mod gated_delta_rule;
pub(crate) mod gather;
pub(crate) mod geglu;
pub(crate) mod gemm;
mod grouped_gemm;
pub(crate) mod hadamard;
mod index_logits;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod log_softmax;
mod merge_attention;
mod mla_decode;
pub(crate) mod moe_gate;
mod moe_permute;
mod moe_unpermute;
pub(crate) mod quantize;
mod random;
pub(crate) mod reduce;
pub(crate) mod reduce_scatter;
mod reduce_to;
pub(crate) mod rms_norm;
mod rope;
mod sample;
pub(crate) mod selective_scan;
pub(crate) mod softmax;
pub(crate) mod sort;
mod sparse_attention;
pub(crate) mod ssd_scan;
pub(crate) mod swiglu;
pub(crate) mod unary;

pub use collective::{
    AllGather, AllReduce, AllToAll, Barrier, Broadcast, CollectiveCall, CollectiveDispatch, CollectiveKind,
    CollectiveRef, Exchange, ExpertParallelFfn, ReduceScatter, ReduceTo, for_each_collective,
};
pub use exchange::P2p;

use crate::backend::Backend;
use crate::custom::CustomOp;
use crate::launch::Launch;
use crate::op::{Call, Dispatch, sealed};
use core::fmt;
use portolan_ops::{Contract, Result};

macro_rules! table {
    (
        kernel { $( $(#[$kdoc:meta])* $kind:ident, $spec:ty, $method:ident; )* }
        fused { $( $(#[$fdoc:meta])* $fkind:ident, $fspec:ty, $fmethod:ident; )* }
    ) => { table! { @all
        $( $(#[$kdoc])* $kind, $spec, $method, false; )*
        $( $(#[$fdoc])* $fkind, $fspec, $fmethod, true; )*
    } };
    (@all $( $(#[$doc:meta])* $kind:ident, $spec:ty, $method:ident, $fused:literal; )*) => {
        /// Which operator.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum OpKind {
            $( $(#[$doc])* $kind, )*
            /// An operator over ranks.
            Collective(CollectiveKind),
            /// A user's own operator.
            Custom,
        }

        impl OpKind {
            /// Every operator of the library, in table order (without `Custom` and operators over ranks).
            pub const ALL: &'static [OpKind] = &[$( OpKind::$kind, )*];

            /// The backend method's name.
            pub const fn name(self) -> &'static str {
                match self {
                    $( OpKind::$kind => stringify!($method), )*
                    OpKind::Collective(kind) => kind.name(),
                    OpKind::Custom => "custom",
                }
            }

            /// Every kind, `Custom` and operators over ranks included, in the order of [`OpKind::place`].
            pub(crate) fn every() -> impl Iterator<Item = Self> {
                let collectives = CollectiveKind::ALL.iter().copied().map(OpKind::Collective);
                OpKind::ALL.iter().copied().chain(collectives).chain([OpKind::Custom])
            }

            /// Its place among all kinds.
            pub(crate) const fn place(self) -> usize {
                enum Place { $( $kind, )* }
                match self {
                    $( OpKind::$kind => Place::$kind as usize, )*
                    OpKind::Collective(kind) => Self::ALL.len() + kind as usize,
                    OpKind::Custom => Self::ALL.len() + CollectiveKind::ALL.len(),
                }
            }

            /// Whether the operator has a composed default.
            pub const fn is_fused(self) -> bool {
                match self {
                    $( OpKind::$kind => $fused, )*
                    OpKind::Collective(_) | OpKind::Custom => false,
                }
            }
        }

        /// A contract, whichever it is.
        #[non_exhaustive]
        #[derive(Clone, Copy, Debug)]
        pub enum SpecRef<'a> {
            $( $(#[$doc])* $kind(&'a $spec), )*
            /// An operator over ranks.
            Collective(CollectiveRef<'a>),
            /// A user's own operator.
            Custom(&'a CustomOp),
        }

        impl SpecRef<'_> {
            /// Which operator.
            pub fn kind(&self) -> OpKind {
                match self {
                    $( SpecRef::$kind(_) => OpKind::$kind, )*
                    SpecRef::Collective(op) => OpKind::Collective(op.kind()),
                    SpecRef::Custom(_) => OpKind::Custom,
                }
            }

            /// Visits the operands' specs with their names.
            pub fn operands(&self, visit: &mut dyn FnMut(&str, &portolan_ops::TensorSpec, portolan_ops::Access)) {
                match self {
                    $( SpecRef::$kind(spec) => spec.operands(&mut |o| visit(o.name, o.spec, o.access)), )*
                    SpecRef::Collective(op) => op.operands(visit),
                    SpecRef::Custom(op) => crate::op::Op::operands(*op, &mut |a| visit(a.name, a.spec, a.access)),
                }
            }
        }

        $(
            $(#[$doc])*
            pub type $kind = Call<$spec>;

            impl sealed::Sealed for $spec {}

            impl Dispatch for $spec {
                const KIND: OpKind = OpKind::$kind;
                fn spec_ref(&self) -> SpecRef<'_> {
                    SpecRef::$kind(self)
                }
                fn dispatch(backend: &dyn Backend, launch: &Launch<'_>, op: &Call<Self>) -> Result<()> {
                    backend.$method(launch, op)
                }
            }
        )*
    };
}
for_each_op!(table);

impl fmt::Display for OpKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
