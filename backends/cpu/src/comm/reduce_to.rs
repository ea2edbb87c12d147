//! The root combines what the others hold.

use super::fold::fold;
use super::transport::Window;
use super::turn::Turn;
use portolan_core::meeting::Stop;
use portolan_ops::comm::ReduceToSpec;

const X: usize = 0;
const OUT: usize = 1;

pub(super) fn run(turn: &Turn<'_>, spec: &ReduceToSpec, own: &[Window]) -> Result<(), Stop> {
    match spec.out() {
        Some(_) => fold(turn, spec.reduce(), spec.x().dtype(), X, 0..spec.x().numel(), own[OUT], 0),
        None => Ok(()),
    }
}
