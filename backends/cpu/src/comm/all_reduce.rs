//! Each rank combines its share of the elements, and then fetches the others' shares.

use super::fold::fold;
use super::transport::Window;
use super::turn::Turn;
use portolan_core::meeting::Stop;
use portolan_ops::comm::AllReduceSpec;

const X: usize = 0;
const OUT: usize = 1;

/// In place too: a rank's share of x is read by that rank alone before it is overwritten, and its share of out by the
/// others behind the fence.
pub(super) fn run(turn: &Turn<'_>, spec: &AllReduceSpec, own: &[Window]) -> Result<(), Stop> {
    let (dtype, numel, me) = (spec.x().dtype(), spec.x().numel(), turn.ranks().index());
    let share = turn.ranks().share(numel, me);
    fold(turn, spec.reduce(), dtype, X, share.clone(), own[OUT], share.start)?;
    turn.fence()?;
    let width = dtype.bytes_for(1);
    for peer in turn.all_from_next().filter(|&peer| peer != me) {
        let share = turn.ranks().share(numel, peer);
        turn.copy(peer, OUT, share.start * width, own[OUT], share.start * width, share.len() * width)?;
    }
    Ok(())
}
