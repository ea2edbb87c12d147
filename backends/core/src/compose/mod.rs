//! Default bodies of the fused operators, composed from the kernel core. One operator, one file; the first
//! line of each books the composition and its reason.

use crate::call;
use crate::launch::Launch;
use portolan_ops::{Result, Unsupported};

macro_rules! absent {
    ($($name:ident: $op:ident),* $(,)?) => {$(
        /// No composition: answers `Unsupported`.
        pub fn $name(l: &Launch<'_>, op: &call::$op, why: Unsupported) -> Result<()> {
            Err(l.unsupported(crate::op::Op::op_name(op), why, "use another device"))
        }
    )*};
}
absent! { linear: Linear, prepack: Prepack, unpack: Unpack, dequantize: Dequantize, embedding: Embedding, rope: Rope, rms_norm: RmsNorm, add_rms_norm: AddRmsNorm, softmax: Softmax, swiglu: Swiglu, sample: Sample, attention: Attention, paged_attention: PagedAttention, kv_cache_write: KvCacheWrite }
