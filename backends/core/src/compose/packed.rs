//! Prepack and unpack: a packed form is a backend's own, so there is nothing to compose it from.
//!
//! A backend that leaves `packing()` at its default never gets these calls.

use crate::call::{Prepack, Unpack};
use crate::launch::Launch;
use crate::op::Op;
use portolan_ops::{Result, Unsupported};

const HINT: &str = "keep the weight as it is, or override this operator together with packing()";

/// No composition.
///
/// # Errors
/// Always `Unsupported`.
pub fn prepack(l: &Launch<'_>, op: &Prepack, why: Unsupported) -> Result<()> {
    Err(l.unsupported(op.op_name(), why, HINT))
}

/// No composition.
///
/// # Errors
/// Always `Unsupported`.
pub fn unpack(l: &Launch<'_>, op: &Unpack, why: Unsupported) -> Result<()> {
    Err(l.unsupported(op.op_name(), why, HINT))
}
