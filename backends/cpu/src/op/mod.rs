//! The CPU's own form of each operator: a plan (what the kernel accepts) and a launch. The same plan answers
//! `support()`, so the answer cannot drift from what runs.

pub(crate) mod gemm;

use crate::Isa;
use portolan_core::{OpQuery, SpecRef, Support};
use portolan_ops::Unsupported;

/// What launching would do.
pub(crate) fn support(_isa: Isa, query: &OpQuery<'_>) -> Support {
    match query.spec {
        SpecRef::Gemm(_) => Support::Native,
        _ => Support::No(Unsupported::NotImplemented),
    }
}
