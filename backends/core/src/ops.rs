//! The allocating spelling of each operator: `ops::gemm_nt(&stream, &a, &b)?` makes the result.
//!
//! The other spelling, into memory that exists, is `stream.run(Gemm::nt(&a, &b, &mut out)?)`.

pub use crate::call::gemm::{gemm_nn, gemm_nt, gemm_tn};
