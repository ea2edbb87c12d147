//! Mixture of experts: the router.

mod gate;

pub(crate) use gate::{GatePointers, gate};

use portolan_ops::OpError;

/// A fault of what the call read.
fn data(op: &'static str, what: String) -> OpError {
    OpError::Data { op: op.into(), what }
}
