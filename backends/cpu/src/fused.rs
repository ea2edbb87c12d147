//! Fused operators that the CPU overrides; the others are composed.

use crate::CpuBackend;
use portolan_core::FusedOps;

impl FusedOps for CpuBackend {}
