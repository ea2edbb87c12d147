//! Each rank fetches the tensors that are meant for it.

use super::transport::Window;
use super::turn::Turn;
use portolan_core::meeting::Stop;
use portolan_ops::comm::ExchangeSpec;

pub(super) fn run(turn: &Turn<'_>, spec: &ExchangeSpec, own: &[Window]) -> Result<(), Stop> {
    let me = turn.ranks().rank();
    let sends = spec.legs().iter().filter(|leg| leg.is_send()).count();
    let mut taken = vec![0; turn.ranks().count()];
    let recvs = spec.legs().iter().filter(|leg| !leg.is_send());
    for (leg, &into) in recvs.zip(own.iter().skip(sends)) {
        let peer = leg.peer() as usize;
        // Windows begin with what is sent, in the order of the signature.
        let to_me = turn.peers[peer].signature.sends.iter().enumerate().filter(|(_, part)| part.peer == me);
        let Some((window, _)) = to_me.clone().nth(taken[peer]) else {
            return Err(Stop { rank: peer, at: Some(turn.at), what: "sends less than it announced".into() });
        };
        taken[peer] += 1;
        turn.copy(peer, window, 0, into, 0, into.bytes)?;
    }
    Ok(())
}
