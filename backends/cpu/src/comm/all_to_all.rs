//! Each rank fetches its part of what every rank holds.

use super::transport::Window;
use super::turn::Turn;
use portolan_core::meeting::Stop;
use portolan_ops::comm::AllToAllSpec;

const X: usize = 0;
const OUT: usize = 1;

pub(super) fn run(turn: &Turn<'_>, spec: &AllToAllSpec, own: &[Window]) -> Result<(), Stop> {
    let (width, me) = (spec.x().dtype().bytes_for(1), turn.ranks().index());
    for peer in turn.all_from_next() {
        // What the peer sends to the ranks before this one lies in front of it; that it sends as much as is expected
        // here was part of the agreement.
        let before = turn.peers[peer].signature.sends.iter().take(me).map(|part| part.numel).sum::<usize>();
        let part = spec.received_from(peer);
        turn.copy(peer, X, before * width, own[OUT], part.start * width, part.len() * width)?;
    }
    Ok(())
}
