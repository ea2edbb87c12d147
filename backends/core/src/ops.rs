//! The allocating spelling of each operator: `ops::gemm_nt(&stream, &a, &b)?` makes the result.
//!
//! The other spelling, into memory that exists, is `stream.run(Gemm::nt(&a, &b, &mut out)?)`. What needs no operator
//! of its own, because copies into views or a few core operators move no more memory, exists in this spelling only.

pub use crate::arrange::{concat, flip, pad, roll, split};
pub use crate::call::all_gather::all_gather;
pub use crate::call::all_reduce::all_reduce;
pub use crate::call::all_to_all::all_to_all;
pub use crate::call::binary::binary;
pub use crate::call::causal_conv1d::causal_conv1d;
pub use crate::call::compare::{compare, masked_fill, select};
pub use crate::call::copy::{cast, contiguous, full};
pub use crate::call::embedding::embedding;
pub use crate::call::expert_ffn::expert_ffn;
pub use crate::call::gated_delta_rule::gated_delta_rule;
pub use crate::call::gather::gather_rows;
pub use crate::call::geglu::geglu;
pub use crate::call::gemm::{gemm_nn, gemm_nt, gemm_tn};
pub use crate::call::hadamard::hadamard;
pub use crate::call::layer_norm::layer_norm;
pub use crate::call::linear::linear;
pub use crate::call::log_softmax::log_softmax;
pub use crate::call::moe_gate::moe_gate;
pub use crate::call::quantize::{dequantize, dynamic_quantize};
pub use crate::call::reduce::{cumulative, linear_scan, reduce, top_k};
pub use crate::call::reduce_scatter::reduce_scatter;
pub use crate::call::rms_norm::{add_rms_norm, group_rms_norm, rms_norm};
pub use crate::call::selective_scan::selective_scan;
pub use crate::call::softmax::softmax;
pub use crate::call::sort::{argsort, sort};
pub use crate::call::ssd_scan::ssd_scan;
pub use crate::call::swiglu::swiglu;
pub use crate::call::unary::unary;
pub use crate::index::{iota, one_hot};
