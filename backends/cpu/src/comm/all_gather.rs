//! Each rank fetches what every rank holds.

use super::transport::Window;
use super::turn::Turn;
use portolan_core::meeting::Stop;
use portolan_ops::comm::AllGatherSpec;

const X: usize = 0;
const OUT: usize = 1;

pub(super) fn run(turn: &Turn<'_>, spec: &AllGatherSpec, own: &[Window]) -> Result<(), Stop> {
    let width = spec.x().dtype().bytes_for(1);
    for peer in turn.all_from_next() {
        let part = spec.part(peer);
        turn.copy(peer, X, 0, own[OUT], part.start * width, part.len() * width)?;
    }
    Ok(())
}
