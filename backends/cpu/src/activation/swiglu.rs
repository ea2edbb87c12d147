//! SwiGLU: the plain unit, and the one with bounds, a factor and an offset.

use super::gate::{GatePointers, Specs, Unit, gate};
use crate::Isa;
use crate::pool::Team;
use crate::simd::{Lanes, math};
use portolan_ops::activation::SwigluSpec;

/// Gates up.
///
/// # Safety
/// The pointers are the starts of allocations that hold what the spec describes, nothing else touches them
/// meanwhile, and out overlaps gate and up only where it is one of them.
pub(crate) unsafe fn swiglu(
    team: &Team,
    max_threads: usize,
    isa: Isa,
    spec: &SwigluSpec,
    pointers: GatePointers,
) {
    let specs = Specs { gate_up: spec.gate_up(), gate: spec.gate(), up: spec.up(), out: spec.out() };
    let plain = spec.limit().is_none() && spec.alpha() == 1.0 && spec.up_offset() == 0.0;
    // SAFETY: the caller's promise.
    unsafe {
        if plain {
            return gate(team, max_threads, isa, Plain, specs, pointers);
        }
        let limit = spec.limit().unwrap_or(f32::INFINITY);
        let unit = Bounded { limit, alpha: spec.alpha(), up_offset: spec.up_offset() };
        gate(team, max_threads, isa, unit, specs, pointers);
    }
}

#[derive(Clone, Copy)]
struct Plain;

impl Unit for Plain {
    #[inline(always)]
    fn of<L: Lanes>(self, gate: L, up: L) -> L {
        math::silu(gate).mul(up)
    }
}

#[derive(Clone, Copy)]
struct Bounded {
    /// Infinite for none.
    limit: f32,
    alpha: f32,
    up_offset: f32,
}

impl Unit for Bounded {
    #[inline(always)]
    fn of<L: Lanes>(self, gate: L, up: L) -> L {
        let (high, low) = (L::splat(self.limit), L::splat(-self.limit));
        // As the first operand, a bound leaves NaN alone.
        let gate = high.min(gate);
        let up = low.max(high.min(up)).add(L::splat(self.up_offset));
        gate.mul(math::sigmoid(gate.mul(L::splat(self.alpha)))).mul(up)
    }
}
