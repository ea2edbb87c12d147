//! Each rank but the root fetches what the root holds.

use super::transport::Window;
use super::turn::Turn;
use portolan_core::meeting::Stop;
use portolan_ops::comm::BroadcastSpec;

const X: usize = 0;

pub(super) fn run(turn: &Turn<'_>, spec: &BroadcastSpec, own: &[Window]) -> Result<(), Stop> {
    match spec.is_root() {
        true => Ok(()),
        false => turn.copy(spec.root() as usize, X, 0, own[X], 0, spec.x().bytes()),
    }
}
