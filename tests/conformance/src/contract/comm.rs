//! Groups of ranks: order, determinism, and that a rank which fails is told to all others, by name and in time.

use super::ranks::{Failed, PATIENCE, config, failed, new_id, on_ranks, on_threads};
use crate::rig::{Check, Rig, Stop, down, ensure, ensure_eq, f32s, launch_fault, refused, up};
use portolan_core::call::{AllGather, AllReduce, AllToAll, Barrier, Binary, Broadcast, Copy, Exchange};
use portolan_core::{Communicator, P2p, Tensor};
use portolan_ops::comm::ReduceOp;
use portolan_ops::{Determinism, OpError, Shape};
use std::time::Duration;

/// Numbers whose sum depends on the order it is formed in.
fn uneven(rank: usize, len: usize) -> Vec<f32> {
    let value =
        |i: usize| ((rank * 7919 + i * 104_729) % 1000) as f32 * [1e-3, 1.0, 1e4][(rank + i) % 3] - 40.0;
    (0..len).map(value).collect()
}

/// Σ in rank order, in f32.
fn sum_in_order(world: usize, len: usize) -> Vec<f32> {
    let ranks: Vec<Vec<f32>> = (0..world).map(|rank| uneven(rank, len)).collect();
    (0..len).map(|i| ranks.iter().skip(1).fold(ranks[0][i], |sum, rank| sum + rank[i])).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub(crate) fn a_sum_may_take_the_place_of_what_it_is_formed_of(rig: &Rig) -> Check {
    const LEN: usize = 10_001;
    let want = bits(&sum_in_order(3, LEN));
    on_ranks(rig, 3, PATIENCE, |peer| {
        let x = up(&peer.stream, &uneven(peer.rank(), LEN))?;
        peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut x.clone())?)?;
        ensure!(bits(&down(&peer.stream, &x)?) == want, "the sum in place differs");
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn fixed_order_reductions_have_the_bits_of_rank_order_whoever_comes_late(rig: &Rig) -> Check {
    const LEN: usize = 301;
    let want = bits(&sum_in_order(4, LEN));
    let backwards: Vec<f32> = (0..LEN)
        .map(|i| (0..3).rev().fold(uneven(3, LEN)[i], |sum, rank| sum + uneven(rank, LEN)[i]))
        .collect();
    ensure!(bits(&backwards) != want, "these numbers cannot tell one order from another");
    on_ranks(rig, 4, PATIENCE, |peer| {
        let x = up(&peer.stream, &uneven(peer.rank(), LEN))?;
        let delay = peer.rig.delay(&peer.stream)?;
        for late in 0..4 {
            if peer.rank() == late {
                delay.run(&peer.stream)?;
            }
            let mut out = peer.stream.empty(x.spec())?;
            peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut out)?)?;
            ensure!(bits(&down(&peer.stream, &out)?) == want, "the bits differ when rank {late} comes last");
        }
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn operators_of_one_communicator_run_in_the_order_they_were_run_on_whichever_streams(
    rig: &Rig,
) -> Check {
    on_ranks(rig, 2, PATIENCE, |peer| {
        let other = peer.rig.stream()?;
        let x = up(&peer.stream, &[1.0])?;
        let delay = peer.rig.delay(&peer.stream)?;
        let mut outs = Vec::new();
        for round in 0..6usize {
            // Each rank is held up on another of its streams; sizes differ, so that a change of order is a mismatch.
            let stream = if (round + peer.rank()).is_multiple_of(2) { &peer.stream } else { &other };
            if round.is_multiple_of(3) {
                delay.run(&peer.stream)?;
            }
            let x = x.broadcast_to(&[round + 1])?;
            let mut dense = stream.empty(&f32s(round + 1)?)?;
            stream.run(Copy::new(&x, &mut dense)?)?;
            stream.run(AllReduce::sum(&peer.comm, &dense, &mut dense.clone())?)?;
            outs.push(dense);
        }
        for (round, out) in outs.iter().enumerate() {
            ensure_eq!(down(&other, out)?, vec![2.0; round + 1], "round {round}");
        }
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn a_collective_waits_for_the_write_of_another_stream(rig: &Rig) -> Check {
    on_ranks(rig, 2, PATIENCE, |peer| {
        let writer = peer.rig.stream()?;
        let (five, x) = (up(&writer, &[5.0; 64])?, up(&peer.stream, &[0.0; 64])?);
        peer.rig.slow_copy(&writer, &five, &x)?;
        let mut out = peer.stream.empty(x.spec())?;
        peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut out)?)?;
        // And the next writer waits for it.
        writer.run(Binary::add(&five, &five, &mut x.clone())?)?;
        ensure_eq!(down(&peer.stream, &out)?, vec![10.0; 64], "the sum");
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn collectives_are_captured_and_replayed(rig: &Rig) -> Check {
    on_ranks(rig, 2, PATIENCE, |peer| {
        let x = up(&peer.stream, &[1.0, 2.0])?;
        let graph = peer.stream.capture(|stream| {
            stream.run(AllReduce::sum(&peer.comm, &x, &mut x.clone())?)?;
            stream.run(Barrier::new(&peer.comm)?)
        })?;
        ensure_eq!(graph.cost().bytes_comm, 8, "the bytes a replay sends");
        for _ in 0..3 {
            graph.replay(&peer.stream)?;
        }
        ensure_eq!(down(&peer.stream, &x)?, [8.0, 16.0], "three doublings");
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn the_report_counts_the_bytes_sent_to_other_ranks(rig: &Rig) -> Check {
    on_ranks(rig, 4, PATIENCE, |peer| {
        let x = up(&peer.stream, &[1.0; 8])?;
        let mut all = peer.stream.empty(&f32s(32)?)?;
        let before = peer.stream.report();
        peer.stream.run(AllGather::new(&peer.comm, &x, &mut all)?)?;
        peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut x.clone())?)?;
        let after = peer.stream.report();
        // x to three others; then six elements of x, and the sum of two to three others.
        ensure_eq!(after.fused.bytes_comm - before.fused.bytes_comm, 96 + 24 + 24, "bytes sent");
        ensure_eq!(after.launches - before.launches, 2, "launches");
        ensure_eq!(after.composed.bytes_comm, after.fused.bytes_comm, "bytes sent, counted through parts");
        ensure_eq!(after.compositions_total(), 0, "compositions");
        peer.stream.synchronize()?;
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn a_group_splits_by_color_in_the_order_of_keys(rig: &Rig) -> Check {
    on_ranks(rig, 5, PATIENCE, |peer| {
        let rank = peer.rank() as u32;
        // Even ranks in reverse, odd ones in order, the last one alone without a group.
        let color = (rank != 4).then_some(rank % 2);
        let part = peer.comm.split(color, if rank.is_multiple_of(2) { 10 - rank } else { 0 })?;
        let Some(part) = part else {
            ensure_eq!(rank, 4, "the rank without a group");
            return Ok(());
        };
        let wanted = [(1, 2), (0, 2), (0, 2), (1, 2)][peer.rank()];
        ensure_eq!((part.rank(), part.world_size()), wanted, "rank and size of rank {rank}");
        let x = up(&peer.stream, &[rank as f32])?;
        let mut all = peer.stream.empty(&f32s(2)?)?;
        peer.stream.run(AllGather::new(&part, &x, &mut all)?)?;
        let members = if rank.is_multiple_of(2) { [2.0, 0.0] } else { [1.0, 3.0] };
        ensure_eq!(down(&peer.stream, &all)?, members, "the members");
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn groups_are_joined_by_their_own_ranks_only(rig: &Rig) -> Check {
    let id = new_id(rig)?;
    ensure!(id != new_id(rig)?, "two groups have one id");
    let stream = rig.stream()?;
    for (rank, world) in [(2, 2), (0, 0)] {
        let error =
            refused(Communicator::join(&stream, &config(id, rank, world, PATIENCE)).map(drop), "join")?;
        ensure!(matches!(error, OpError::Attribute { .. }), "rank {rank} of {world}: {error}");
    }
    // A rank that nobody joins is named.
    let short = Duration::from_millis(50);
    let alone = failed(Communicator::join(&stream, &config(id, 0, 2, short)).map(drop), "join alone")?;
    ensure_eq!((alone.op.as_str(), alone.rank), ("join", 1), "who did not join ({})", alone.what);
    // Two ideas of one group, or of what it promises, are one too many.
    let id = new_id(rig)?;
    on_threads(2, |rank| {
        let stream = rig.stream()?;
        let told =
            failed(Communicator::join(&stream, &config(id, rank, 2 + rank, PATIENCE)).map(drop), "join")?;
        ensure!(told.what.contains("group of"), "two sizes: {told:?}");
        Ok(())
    })?;
    let id = new_id(rig)?;
    on_threads(2, |rank| {
        let stream = rig.stream()?;
        let mut config = config(id, rank, 2, PATIENCE);
        if rank == 1 {
            config.determinism = Determinism::Fast;
        }
        let told = failed(Communicator::join(&stream, &config).map(drop), "join")?;
        ensure!(told.what.contains("determinism"), "two levels: {told:?}");
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn a_rank_that_left_is_named_on_every_survivor(rig: &Rig) -> Check {
    on_ranks(rig, 3, PATIENCE, |peer| {
        let x = up(&peer.stream, &[1.0; 40])?;
        peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut x.clone())?)?;
        if peer.rank() == 1 {
            // The work it has enqueued is done all the same.
            drop(peer.comm);
            ensure_eq!(down(&peer.stream, &x)?, [3.0; 40], "what was run before it left");
            return Ok(());
        }
        let ran = peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut x.clone())?);
        let told = failed(ran.and_then(|()| peer.stream.synchronize()), "a sum without rank 1")?;
        ensure_eq!((told.op.as_str(), told.seq, told.rank), ("all_reduce", 1, 1), "{}", told.what);
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn a_rank_that_drops_everything_it_has_ends_the_wait_of_the_others(rig: &Rig) -> Check {
    on_ranks(rig, 3, PATIENCE, |peer| {
        if peer.rank() == 2 {
            drop(peer);
            return Ok(());
        }
        let ran = peer.stream.run(Barrier::new(&peer.comm)?);
        let told = failed(ran.and_then(|()| peer.stream.synchronize()), "a barrier without rank 2")?;
        ensure_eq!((told.op.as_str(), told.seq, told.rank), ("barrier", 0, 2), "{}", told.what);
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn a_late_rank_is_named_on_every_rank(rig: &Rig) -> Check {
    let timeout = Duration::from_millis(500);
    on_ranks(rig, 3, timeout, |peer| {
        let x = up(&peer.stream, &[1.0; 40])?;
        peer.stream.run(Barrier::new(&peer.comm)?)?;
        peer.stream.synchronize()?;
        if peer.rank() == 2 {
            std::thread::sleep(timeout * 5 / 2);
        }
        let ran = peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut x.clone())?);
        let told = failed(ran.and_then(|()| peer.stream.synchronize()), "a sum that rank 2 is late for")?;
        ensure_eq!((told.op.as_str(), told.seq, told.rank), ("all_reduce", 1, 2), "{}", told.what);
        ensure!(told.what.contains("500ms"), "the bound is not named: {}", told.what);
        Ok(())
    })?;
    Ok(())
}

/// One rank of three calls something else than the others: each way of doing so, and what has to be said of it.
pub(crate) fn ranks_of_different_minds_are_told_so_and_who(rig: &Rig) -> Check {
    type Call = fn(&Communicator, &Tensor, &super::ranks::Peer) -> Result<(), OpError>;
    let sum: Call = |comm, x, peer| peer.stream.run(AllReduce::sum(comm, x, &mut x.clone())?);
    let ways: [(&str, Call, Call, &str); 6] = [
        (
            "another operator",
            sum,
            |comm, x, peer| peer.stream.run(Broadcast::new(comm, 0, &mut x.clone())?),
            "broadcast",
        ),
        (
            "another combination",
            sum,
            |comm, x, peer| peer.stream.run(AllReduce::new(comm, ReduceOp::Max, x, &mut x.clone())?),
            "max",
        ),
        (
            "another size",
            sum,
            |comm, x, peer| {
                let part = x.narrow(0, 0, 5)?;
                peer.stream.run(AllReduce::sum(comm, &part, &mut part.clone())?)
            },
            "5 f32",
        ),
        (
            "another element type",
            sum,
            |comm, _, peer| {
                let x = peer.stream.upload(&[1i32; 6], &Shape::new(&[6])?)?;
                peer.stream.run(AllReduce::sum(comm, &x, &mut x.clone())?)
            },
            "6 i32",
        ),
        (
            "another root",
            |comm, x, peer| peer.stream.run(Broadcast::new(comm, 0, &mut x.clone())?),
            |comm, x, peer| peer.stream.run(Broadcast::new(comm, 2, &mut x.clone())?),
            "root 2",
        ),
        (
            // It has left one out, and is one ahead.
            "another sequence",
            |comm, x, peer| {
                peer.stream.run(Barrier::new(comm)?)?;
                peer.stream.run(AllReduce::sum(comm, x, &mut x.clone())?)
            },
            sum,
            "while rank 0 called barrier",
        ),
    ];
    for (way, usual, odd, said) in ways {
        on_ranks(rig, 3, PATIENCE, |peer| {
            let x = up(&peer.stream, &[1.0; 6])?;
            let call = if peer.rank() == 1 { odd } else { usual };
            let ran = call(&peer.comm, &x, &peer);
            let told = failed(ran.and_then(|()| peer.stream.synchronize()), way)?;
            ensure_eq!((told.rank, told.seq), (1, 0), "{way}: {}", told.what);
            ensure!(told.what.contains(said), "{way}: `{}` does not say `{said}`", told.what);
            Ok(())
        })?;
    }
    // What one sends, the other expects.
    on_ranks(rig, 2, PATIENCE, |peer| {
        let x = up(&peer.stream, &[1.0; 4])?;
        let mut out = peer.stream.empty(&f32s(4)?)?;
        let (send, recv) = if peer.rank() == 0 { ([1, 3], [1, 3]) } else { ([2, 2], [2, 2]) };
        let ran = peer.stream.run(AllToAll::ragged(&peer.comm, &send, &recv, &x, &mut out)?);
        let told = failed(ran.and_then(|()| peer.stream.synchronize()), "all_to_all")?;
        ensure_eq!(told.what, "sends 3 f32 to rank 1, which expects 2 f32", "what the sender is told");
        Ok(())
    })?;
    on_ranks(rig, 2, PATIENCE, |peer| {
        let x = up(&peer.stream, &[1.0; 4])?;
        let parts = [P2p::Send { tensor: x, peer: 1 - peer.rank() as u32 }];
        let ran = peer.stream.run(Exchange::new(&peer.comm, &parts)?);
        let told = failed(ran.and_then(|()| peer.stream.synchronize()), "exchange")?;
        ensure_eq!(told.what, "sends 4 f32 to rank 1, which expects nothing", "what the sender is told");
        Ok(())
    })?;
    Ok(())
}

pub(crate) fn a_stream_that_fails_ends_its_group_before_the_timeout(rig: &Rig) -> Check {
    // Before it has run anything of the group, and behind something it was to run.
    for enqueued in [false, true] {
        on_ranks(rig, 3, PATIENCE, |peer| {
            let x = up(&peer.stream, &[1.0; 6])?;
            if peer.rank() == 0 {
                launch_fault(&peer.stream)?;
                if enqueued {
                    // Refused when the fault is known already.
                    let _ = peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut x.clone())?);
                }
                refused(peer.stream.synchronize(), "synchronize after the fault")?;
                // It stays: nobody is told by its leaving.
                return Ok(Some(peer));
            }
            let ran = peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut x.clone())?);
            let told = failed(ran.and_then(|()| peer.stream.synchronize()), "a sum with a failed stream")?;
            ensure_eq!(told.rank, 0, "who failed: {}", told.what);
            ensure!(told.what.contains("gather"), "what failed is not named: {}", told.what);
            Ok(None)
        })?;
    }
    Ok(())
}

pub(crate) fn a_fault_that_was_inherited_ends_the_group_before_the_timeout(rig: &Rig) -> Check {
    on_ranks(rig, 2, PATIENCE, |peer| {
        let x = up(&peer.stream, &[1.0; 4])?;
        if peer.rank() == 1 {
            // What it is to give is written by a stream that fails, after the collective was run or before.
            let writer = peer.rig.stream()?;
            peer.rig.keep_busy(&writer)?;
            let out = launch_fault(&writer)?;
            let mut flat = out.reshape(&[4])?;
            let ran =
                AllReduce::sum(&peer.comm, &flat.clone(), &mut flat).and_then(|sum| peer.stream.run(sum));
            refused(ran.and_then(|()| peer.stream.synchronize()), "a sum of what failed")?;
            return Ok(Some(peer));
        }
        let ran = peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut x.clone())?);
        let told = failed(ran.and_then(|()| peer.stream.synchronize()), "a sum with what failed")?;
        ensure_eq!(told.rank, 1, "who failed: {}", told.what);
        ensure!(told.what.contains("gather"), "what failed is not named: {}", told.what);
        Ok(None)
    })?;
    Ok(())
}

pub(crate) fn a_group_that_ended_refuses_and_others_still_work(rig: &Rig) -> Check {
    let second = new_id(rig)?;
    on_ranks(rig, 2, PATIENCE, |peer| {
        let spare = peer.rig.stream()?;
        let x = up(&spare, &[1.0; 6])?;
        let other = Communicator::join(&spare, &config(second, peer.rank() as u32, 2, PATIENCE))?;
        if peer.rank() == 0 {
            peer.comm.abort("has had enough");
        } else {
            let ran = peer.stream.run(Barrier::new(&peer.comm)?);
            let told = failed(ran.and_then(|()| peer.stream.synchronize()), "a barrier of an aborted group")?;
            ensure_eq!((told.rank, told.what.as_str()), (0, "has had enough"), "who aborted, and why");
        }
        // Again, on a stream that is well: refused, and the stream stays well.
        let fresh = peer.rig.stream()?;
        for _ in 0..2 {
            let told = failed(fresh.run(Barrier::new(&peer.comm)?), "a call of a group that has ended")?;
            ensure!(matches!(&told, Failed { rank: 0, .. }), "{told:?}");
        }
        failed(peer.comm.health(), "its health")?;
        fresh.synchronize()?;
        other.health()?;
        spare.run(AllReduce::sum(&other, &x, &mut x.clone())?)?;
        ensure_eq!(down(&spare, &x)?, [2.0; 6], "a sum of the other group");
        ensure!(peer.world() == 2, "the group has another size");
        Ok::<(), Stop>(())
    })?;
    Ok(())
}
