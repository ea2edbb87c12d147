//! GeGLU, by the error function or the tangent.

use super::gate::{GatePointers, Specs, Unit, gate};
use crate::Isa;
use crate::pool::Team;
use crate::simd::{Lanes, math};
use portolan_ops::activation::{GegluSpec, GeluKind};

/// Gates up.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and out overlaps gate and up only where it is one of them.
pub(crate) unsafe fn geglu(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &GegluSpec,
    pointers: GatePointers,
) {
    let specs = Specs { gate_up: spec.gate_up(), gate: spec.gate(), up: spec.up(), out: spec.out() };
    // SAFETY: the caller's promise.
    unsafe {
        match spec.kind() {
            GeluKind::Erf => gate(team, max_threads, isa, Erf, specs, pointers),
            GeluKind::Tanh => gate(team, max_threads, isa, Tanh, specs, pointers),
        }
    }
}

#[derive(Clone, Copy)]
struct Erf;

impl Unit for Erf {
    #[inline(always)]
    fn of<L: Lanes>(self, gate: L, up: L) -> L {
        math::gelu(gate).mul(up)
    }
}

#[derive(Clone, Copy)]
struct Tanh;

impl Unit for Tanh {
    #[inline(always)]
    fn of<L: Lanes>(self, gate: L, up: L) -> L {
        math::gelu_tanh(gate).mul(up)
    }
}
