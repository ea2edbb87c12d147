//! The CPU's own form of each operator: a plan (what the kernel accepts) and a launch. The same plan answers
//! `support()`, so the answer cannot drift from what runs.

pub(crate) mod add_rms_norm;
pub(crate) mod args;
pub(crate) mod binary;
pub(crate) mod cast;
pub(crate) mod compare;
pub(crate) mod copy;
pub(crate) mod dequantize;
pub(crate) mod embedding;
pub(crate) mod fill;
pub(crate) mod gather;
pub(crate) mod gemm;
pub(crate) mod linear;
pub(crate) mod prepack;
pub(crate) mod random;
pub(crate) mod reduce;
pub(crate) mod rms_norm;
pub(crate) mod rows;
pub(crate) mod sample;
pub(crate) mod scan;
pub(crate) mod scatter;
pub(crate) mod select;
pub(crate) mod softmax;
pub(crate) mod swiglu;
pub(crate) mod top_k;
pub(crate) mod unary;
pub(crate) mod unpack;

use portolan_core::{OpKind, OpQuery, Support};
use portolan_ops::Unsupported;

/// What launching would do.
pub(crate) fn support(query: &OpQuery<'_>) -> Support {
    match query.spec.kind() {
        OpKind::Rope | OpKind::Attention | OpKind::PagedAttention | OpKind::KvCacheWrite | OpKind::Custom => {
            Support::No(Unsupported::NotImplemented)
        }
        _ => Support::Native,
    }
}
