//! Each rank combines its own part of what all hold.

use super::fold::fold;
use super::transport::Window;
use super::turn::Turn;
use portolan_core::meeting::Stop;
use portolan_ops::comm::ReduceScatterSpec;

const X: usize = 0;
const OUT: usize = 1;

pub(super) fn run(turn: &Turn<'_>, spec: &ReduceScatterSpec, own: &[Window]) -> Result<(), Stop> {
    let part = spec.part(turn.ranks().index());
    fold(turn, spec.reduce(), spec.x().dtype(), X, part, own[OUT], 0)
}
