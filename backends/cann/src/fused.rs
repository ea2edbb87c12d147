//! Fused operators: composed by core from the kernel core, so refused by their first part.

use crate::CannBackend;
use portolan_core::FusedOps;

impl FusedOps for CannBackend {}
