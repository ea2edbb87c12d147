//! Collectives through the C interface: what they compute, when, what they refuse, and what becomes of them when a
//! rank does not come.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::Collectives;
use portolan_cann_sys::bindings::*;
use portolan_cann_sys::sim::{Adversary, PlannedFault, SimOptions};
use rig::{World, call};
use std::ffi::c_void;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

const F32: HcclDataType = HCCL_DATA_TYPE_FP32;
const SUM: HcclReduceOp = HCCL_REDUCE_SUM;

fn world(adversary: Adversary, seed: u64) -> World {
    World::new(SimOptions {
        devices: 4,
        adversary,
        seed,
        memory_bytes: 16 << 20,
        connection_timeout: Some(Duration::from_millis(200)),
        execution_timeout: Some(Duration::from_millis(100)),
        ..SimOptions::default()
    })
}

/// A rank on its thread: its communicator and a stream.
struct Rank<'w> {
    world: &'w World,
    rank: u32,
    comm: HcclComm,
    stream: aclrtStream,
}

impl World {
    fn collectives(&self) -> &Collectives {
        &self.0.libraries().collectives
    }

    fn root(&self) -> HcclRootInfo {
        let mut root = HcclRootInfo { internal: [0; 4108] };
        assert_eq!(call!(self.collectives(), HcclGetRootInfo(&mut root)), 0, "{}", self.message());
        root
    }

    /// Runs a function on every one of `size` ranks, each on a thread and a device of its own.
    fn ranks<R: Send>(&self, size: u32, body: impl Fn(&Rank<'_>) -> R + Sync) -> Vec<R> {
        let root = self.root();
        let (root, body) = (&root, &body);
        std::thread::scope(|scope| {
            let threads = (0..size).map(|rank| {
                scope.spawn(move || {
                    assert_eq!(call!(self.runtime(), aclrtSetDevice(rank as i32)), 0);
                    let mut comm = null_mut();
                    let code = call!(self.collectives(), HcclCommInitRootInfo(size, root, rank, &mut comm));
                    assert_eq!(code, 0, "{}", self.message());
                    let rank = Rank { world: self, rank, comm, stream: self.stream() };
                    let result = body(&rank);
                    assert_eq!(call!(self.collectives(), HcclCommDestroy(comm)), 0);
                    result
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }
}

impl Rank<'_> {
    fn all_reduce(&self, send: *mut c_void, recv: *mut c_void, count: u64) -> u32 {
        call!(self.world.collectives(), HcclAllReduce(send, recv, count, F32, SUM, self.comm, self.stream))
    }

    fn synchronize(&self) -> i32 {
        self.world.synchronize(self.stream)
    }

    fn done(&self) {
        assert_eq!(self.synchronize(), 0, "{}", self.world.message());
    }

    fn async_error(&self) -> HcclResult {
        let mut error = 99;
        assert_eq!(call!(self.world.collectives(), HcclGetCommAsyncError(self.comm, &mut error)), 0);
        error
    }
}

fn adversaries() -> Vec<(Adversary, u64)> {
    let seeded = (0..5).map(|seed| (Adversary::Seeded, seed));
    (0..5).map(|seed| (Adversary::Late, seed)).chain(seeded).chain([(Adversary::Early, 0)]).collect()
}

#[test]
fn sums_are_those_of_what_the_streams_had_written_by_then() {
    for (adversary, seed) in adversaries() {
        let world = world(adversary, seed);
        let sums = world.ranks(3, |rank| {
            let world = rank.world;
            let (x, y) = (world.memory(8), world.memory(8));
            for round in 0..3 {
                let value = (rank.rank + 1) as f32 * 10f32.powi(round);
                let from = world.pinned(&[value, -value]);
                assert_eq!(world.copy(x, from, 8, rank.stream), 0);
                // The second in place.
                assert_eq!(rank.all_reduce(x, if round == 1 { x } else { y }, 2), 0, "{}", world.message());
            }
            rank.done();
            (world.floats(x, 2), world.floats(y, 2))
        });
        let own = |rank: u32| vec![100.0 * (rank + 1) as f32, -100.0 * (rank + 1) as f32];
        for (rank, sums) in (0..).zip(sums) {
            assert_eq!(sums, (own(rank), vec![600.0, -600.0]), "{adversary:?} {seed}");
        }
    }
}

#[test]
fn every_collective_brings_each_element_where_it_belongs() {
    let world = world(Adversary::Late, 3);
    let size = 3u32;
    let got = world.ranks(size, |rank| {
        let (world, c, me) = (rank.world, rank.world.collectives(), f32::from(rank.rank as u8));
        let (comm, stream) = (rank.comm, rank.stream);
        // Six numbers that say whose they are and where they stood.
        let mine: Vec<f32> = (0..6).map(|at| 10.0 * me + at as f32).collect();
        let send = world.upload(&mine);
        let blank = || world.upload(&[-1f32; 6]);
        let mut all = Vec::new();
        let mut seen = |code: u32, at: *mut c_void| {
            assert_eq!(code, 0, "{}", world.message());
            rank.done();
            all.push(world.floats(at, 6));
        };
        let at = world.upload(&mine);
        seen(call!(c, HcclBroadcast(at, 2, F32, 1, comm, stream)), at);
        let at = blank();
        seen(call!(c, HcclAllGather(send, at, 2, F32, comm, stream)), at);
        let at = blank();
        seen(call!(c, HcclReduceScatter(send, at, 2, F32, SUM, comm, stream)), at);
        let at = blank();
        seen(call!(c, HcclReduce(send, at, 3, F32, HCCL_REDUCE_MAX, 2, comm, stream)), at);
        let at = blank();
        seen(call!(c, HcclScatter(send, at, 2, F32, 0, comm, stream)), at);
        let at = blank();
        seen(call!(c, HcclAlltoAll(send, 2, F32, at, 2, F32, comm, stream)), at);
        // Rank r gives r + 1 of its numbers to rank 0 and none to others.
        let (give, from) = ([u64::from(rank.rank) + 1, 0, 0], [0u64, 0, 0]);
        let take = if rank.rank == 0 { [1u64, 2, 3] } else { [0; 3] };
        let (counts, places) = (give.as_ptr().cast(), from.as_ptr().cast());
        let (taken, into) = (take.as_ptr().cast(), [0u64, 1, 3]);
        let at = blank();
        let code = call!(
            c,
            HcclAlltoAllV(send, counts, places, F32, at, taken, into.as_ptr().cast(), F32, comm, stream)
        );
        seen(code, at);
        let matrix = [[1u64, 0, 0], [2, 0, 0], [3, 0, 0]];
        let at = blank();
        seen(call!(c, HcclAlltoAllVC(send, matrix.as_ptr().cast(), F32, at, F32, comm, stream)), at);
        // Counts 1, 2, 3 of the ranks, gathered from the end on; and reduced into them.
        let (counts, places) = ([1u64, 2, 3], [5u64, 3, 0]);
        let (counts, places) = (counts.as_ptr().cast(), places.as_ptr().cast());
        let at = blank();
        let own = u64::from(rank.rank) + 1;
        seen(call!(c, HcclAllGatherV(send, own, at, counts, places, F32, comm, stream)), at);
        let at = blank();
        seen(call!(c, HcclReduceScatterV(send, counts, places, at, own, F32, SUM, comm, stream)), at);
        all
    });
    let blank = |mut numbers: Vec<f32>| {
        numbers.resize(6, -1.0);
        numbers
    };
    for (rank, got) in got.iter().enumerate() {
        let me = rank as f32;
        let of = |rank: f32, at: f32| 10.0 * rank + at;
        let mut broadcast: Vec<f32> = (0..6).map(|at| of(me, at as f32)).collect();
        broadcast[..2].copy_from_slice(&[10.0, 11.0]);
        let (reduced, to_zero) = match rank {
            0 => (blank(vec![]), blank(vec![0.0, 10.0, 11.0, 20.0, 21.0, 22.0])),
            2 => (blank(vec![20.0, 21.0, 22.0]), blank(vec![])),
            _ => (blank(vec![]), blank(vec![])),
        };
        let want = [
            broadcast,
            vec![0.0, 1.0, 10.0, 11.0, 20.0, 21.0],
            blank(vec![30.0 + 6.0 * me, 33.0 + 6.0 * me]),
            reduced,
            blank(vec![2.0 * me, 2.0 * me + 1.0]),
            (0..3).flat_map(|from| [of(from as f32, 2.0 * me), of(from as f32, 2.0 * me + 1.0)]).collect(),
            to_zero.clone(),
            to_zero,
            vec![20.0, 21.0, 22.0, 10.0, 11.0, 0.0],
            blank(match rank {
                0 => vec![45.0],
                1 => vec![39.0, 42.0],
                _ => vec![30.0, 33.0, 36.0],
            }),
        ];
        for (number, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(got, want, "collective {number} on rank {rank}");
        }
    }
}

#[test]
fn a_ring_of_sends_turns_in_a_batch_and_not_one_by_one() {
    for grouped in [true, false] {
        let world = world(Adversary::Late, 1);
        let got = world.ranks(3, |rank| {
            let (world, c) = (rank.world, rank.world.collectives());
            let (x, y) = (world.upload(&[rank.rank as f32]), world.upload(&[9f32]));
            let (next, before) = ((rank.rank + 1) % 3, (rank.rank + 2) % 3);
            if grouped {
                assert_eq!(call!(c, HcclGroupStart()), 0);
            }
            assert_eq!(call!(c, HcclSend(x, 1, F32, next, rank.comm, rank.stream)), 0);
            assert_eq!(call!(c, HcclRecv(y, 1, F32, before, rank.comm, rank.stream)), 0);
            if grouped {
                assert_eq!(call!(c, HcclGroupEnd()), 0);
            }
            let code = rank.synchronize();
            (code, if code == 0 { world.floats(y, 1)[0] } else { -1.0 })
        });
        if grouped {
            assert_eq!(got, [(0, 2.0), (0, 0.0), (0, 1.0)]);
        } else {
            // Each waits for a receiver that is behind its own send; once one has given up, that may free the others.
            assert!(got.iter().any(|(code, _)| *code == 107020), "{got:?}");
            assert!(got.iter().all(|(code, _)| [0, 107020].contains(code)), "{got:?}");
        }
    }
}

#[test]
fn items_of_a_batch_do_not_hold_each_other_up() {
    let world = world(Adversary::Late, 1);
    let got = world.ranks(3, |rank| {
        let (world, c, s, comm) = (rank.world, rank.world.collectives(), rank.stream, rank.comm);
        let (x, y) = (world.upload(&[10.0 + rank.rank as f32]), world.upload(&[9f32]));
        let item = |to: u32| HcclSendRecvItem {
            sendRecvType: HCCL_SEND,
            buf: x,
            count: 1,
            dataType: F32,
            remoteRank: to,
        };
        match rank.rank {
            // To both at once; rank 2 takes this one only after what rank 1 sends when it has its own.
            0 => assert_eq!(call!(c, HcclBatchSendRecv([item(1), item(2)].as_mut_ptr(), 2, comm, s)), 0),
            1 => {
                assert_eq!(call!(c, HcclRecv(y, 1, F32, 0, comm, s)), 0);
                assert_eq!(call!(c, HcclSend(y, 1, F32, 2, comm, s)), 0);
            }
            _ => {
                assert_eq!(call!(c, HcclRecv(y, 1, F32, 1, comm, s)), 0);
                assert_eq!(call!(c, HcclRecv(x, 1, F32, 0, comm, s)), 0);
            }
        }
        rank.done();
        (world.floats(x, 1)[0], world.floats(y, 1)[0])
    });
    assert_eq!(got, [(10.0, 9.0), (11.0, 10.0), (10.0, 10.0)]);
}

#[test]
fn ranks_that_disagree_are_refused_by_name_and_the_others_time_out() {
    type Call = fn(&Rank<'_>, *mut c_void) -> u32;
    let sum: Call = |rank, x| rank.all_reduce(x, x, 4);
    let others: [(Call, &str); 5] = [
        (|rank, x| rank.all_reduce(x, x, 3), "elements are given"),
        (
            |r, x| {
                let c = r.world.collectives();
                call!(c, HcclAllReduce(x, x, 4, HCCL_DATA_TYPE_INT32, SUM, r.comm, r.stream))
            },
            "FP32",
        ),
        (
            |r, x| {
                let c = r.world.collectives();
                call!(c, HcclAllReduce(x, x, 4, F32, HCCL_REDUCE_MAX, r.comm, r.stream))
            },
            "Max",
        ),
        (|r, x| call!(r.world.collectives(), HcclBroadcast(x, 4, F32, 0, r.comm, r.stream)), "HcclBroadcast"),
        (|r, _| call!(r.world.collectives(), HcclBarrier(r.comm, r.stream)), "HcclBarrier"),
    ];
    for (other, part) in others {
        let world = world(Adversary::Late, 0);
        let outcomes = world.ranks(2, |rank| {
            let x = rank.world.upload(&[1f32; 4]);
            let code = if rank.rank == 0 { sum(rank, x) } else { other(rank, x) };
            let message = rank.world.message();
            (code, message, rank.synchronize(), rank.async_error())
        });
        let (refused, waited): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|(code, ..)| *code != 0);
        assert_eq!((refused.len(), waited.len()), (1, 1), "{part}");
        assert_eq!((refused[0].0, refused[0].2), (HCCL_E_PARA, 0));
        assert!(
            refused[0].1.contains(part) && refused[0].1.contains("does not fit rank"),
            "{}",
            refused[0].1
        );
        assert_eq!((waited[0].2, waited[0].3), (107020, HCCL_E_TIMEOUT), "{part}");
    }
}

#[test]
fn roots_that_differ_are_refused() {
    let world = world(Adversary::Late, 0);
    let codes = world.ranks(2, |rank| {
        let x = rank.world.memory(4);
        let c = rank.world.collectives();
        let code = call!(c, HcclBroadcast(x, 1, F32, rank.rank, rank.comm, rank.stream));
        assert!(call!(c, HcclBroadcast(x, 1, F32, 2, rank.comm, rank.stream)) == HCCL_E_PARA);
        code
    });
    assert!(codes.contains(&0) && codes.contains(&HCCL_E_PARA), "{codes:?}");
}

#[test]
fn a_rank_that_dies_lets_the_others_time_out_with_its_number() {
    let world = world(Adversary::Late, 0);
    world.0.plan(&[PlannedFault::DeadRank { rank: 1, at: 2 }]).unwrap();
    let outcomes = world.ranks(3, |rank| {
        let x = rank.world.upload(&[1f32]);
        assert_eq!(rank.all_reduce(x, x, 1), 0);
        rank.done();
        assert_eq!(rank.all_reduce(x, x, 1), 0);
        let code = rank.synchronize();
        let message = rank.world.message();
        let after = (rank.async_error(), rank.all_reduce(x, x, 1));
        (code, message.contains("rank 1 never came: planned"), after, rank.world.floats(x, 1)[0])
    });
    assert_eq!(outcomes, vec![(107020, true, (HCCL_E_TIMEOUT, HCCL_E_TIMEOUT), 3.0); 3]);
}

#[test]
fn a_slow_rank_is_waited_for_and_a_link_that_fails_shows_on_every_rank() {
    let world = world(Adversary::Early, 0);
    let late = Duration::from_millis(60);
    world
        .0
        .plan(&[PlannedFault::SlowRank { rank: 0, late }, PlannedFault::Link { at: 2, code: 507056 }])
        .unwrap();
    let start = Instant::now();
    let outcomes = world.ranks(2, |rank| {
        let x = rank.world.upload(&[1f32]);
        assert_eq!(rank.all_reduce(x, x, 1), 0);
        rank.done();
        let waited = start.elapsed() >= late;
        assert_eq!(rank.all_reduce(x, x, 1), 0);
        (waited, rank.synchronize(), rank.async_error(), rank.world.floats(x, 1)[0])
    });
    assert_eq!(outcomes, vec![(true, 507056, HCCL_E_NETWORK, 2.0); 2]);
}

#[test]
fn a_stream_that_is_aborted_takes_its_rank_out_and_pending_collectives_are_reported() {
    let world = world(Adversary::Late, 0);
    let barrier = std::sync::Barrier::new(2);
    let outcomes = world.ranks(2, |rank| {
        let x = rank.world.upload(&[1f32]);
        assert_eq!(rank.all_reduce(x, x, 1), 0);
        barrier.wait();
        if rank.rank == 0 {
            assert_eq!(call!(rank.world.runtime(), aclrtStreamAbort(rank.stream)), 0);
        }
        barrier.wait();
        let code = rank.synchronize();
        barrier.wait();
        (code, rank.world.message().contains("aborted"))
    });
    assert_eq!(outcomes, [(107023, true), (107020, true)]);

    let outcomes = world.ranks(1, |rank| {
        let x = rank.world.upload(&[1f32]);
        rank.all_reduce(x, x, 1)
    });
    assert_eq!(outcomes, [0]);
    let report = world.0.report().unwrap().to_string();
    assert!(report.contains("1 collectives of rank 0 were pending"), "{report}");
}

#[test]
fn communicators_are_made_by_all_ranks_together_or_not_at_all() {
    let world = world(Adversary::Late, 0);
    let c = world.collectives();
    let root = world.root();
    let mut comm = null_mut();
    // Nobody else comes.
    assert_eq!(call!(c, HcclCommInitRootInfo(2, &root, 0, &mut comm)), HCCL_E_TIMEOUT);
    assert!(world.message().contains("of 2 ranks only [0] came"));
    assert_eq!(call!(c, HcclCommInitRootInfo(2, &root, 2, &mut comm)), HCCL_E_PARA);
    let foreign = HcclRootInfo { internal: [0; 4108] };
    assert_eq!(call!(c, HcclCommInitRootInfo(1, &foreign, 0, &mut comm)), HCCL_E_PARA);
    assert_eq!(call!(c, HcclCommInitRootInfo(1, std::ptr::null(), 0, &mut comm)), HCCL_E_PTR);
    // Two ranks on one device, and two of one number.
    for (second, text) in [(1, "is rank 0's already"), (0, "rank 0 has come already")] {
        let root = world.root();
        let (root, world) = (&root, &world);
        std::thread::scope(|scope| {
            let threads = [0, second].map(|rank| {
                scope.spawn(move || {
                    assert_eq!(call!(world.runtime(), aclrtSetDevice(0)), 0);
                    let mut comm = null_mut();
                    let code = call!(world.collectives(), HcclCommInitRootInfo(2, root, rank, &mut comm));
                    (code, world.message())
                })
            });
            let mut outcomes = threads.map(|thread| thread.join().unwrap()).to_vec();
            outcomes.sort();
            assert_eq!((outcomes[0].0, outcomes[1].0), (HCCL_E_PARA, HCCL_E_TIMEOUT));
            let texts = [text.to_owned(), text.replace("rank 0's", "rank 1's")];
            assert!(texts.iter().any(|text| outcomes[0].1.contains(text)), "{}", outcomes[0].1);
        });
    }
    // Information is used once.
    let root = world.root();
    assert_eq!(call!(c, HcclCommInitRootInfo(1, &root, 0, &mut comm)), 0);
    assert!(world.0.report().unwrap().to_string().contains("1 communicators"));
    let mut again = null_mut();
    assert_eq!(call!(c, HcclCommInitRootInfo(1, &root, 0, &mut again)), HCCL_E_PARA);
    assert_eq!(call!(c, HcclCommDestroy(comm)), 0);
    assert_eq!(call!(c, HcclCommDestroy(comm)), HCCL_E_PARA);
    assert_eq!(call!(c, HcclCommDestroy(null_mut())), HCCL_E_PTR);
}

#[test]
fn one_thread_may_hold_the_communicators_of_all_devices() {
    let world = world(Adversary::Late, 0);
    let (c, runtime) = (world.collectives(), world.runtime());
    let (mut devices, mut comms) = ([2, 0], [null_mut(); 2]);
    assert_eq!(call!(c, HcclCommInitAll(2, devices.as_mut_ptr(), comms.as_mut_ptr())), 0);
    let mut twice = [1, 1];
    assert_eq!(call!(c, HcclCommInitAll(2, twice.as_mut_ptr(), comms.as_mut_ptr())), HCCL_E_PARA);
    let mut held = Vec::new();
    for (rank, device) in devices.into_iter().enumerate() {
        assert_eq!(call!(runtime, aclrtSetDevice(device)), 0);
        let (stream, x) = (world.stream(), world.upload(&[rank as f32 + 1.0]));
        let (mut size, mut number) = (0, 9);
        assert_eq!(call!(c, HcclGetRankSize(comms[rank], &mut size)), 0);
        assert_eq!(call!(c, HcclGetRankId(comms[rank], &mut number)), 0);
        assert_eq!((size, number), (2, rank as u32));
        let reduce = |comm, stream| call!(c, HcclAllReduce(x, x, 1, F32, SUM, comm, stream));
        assert_eq!(reduce(comms[1 - rank], stream), HCCL_E_PARA);
        assert!(world.message().contains("is current"));
        assert_eq!(reduce(comms[rank], null_mut()), HCCL_E_PTR);
        assert_eq!(reduce(comms[rank], stream), 0, "{}", world.message());
        held.push((device, stream, x));
    }
    for (device, stream, x) in held {
        assert_eq!(call!(runtime, aclrtSetDevice(device)), 0);
        assert_eq!(world.synchronize(stream), 0);
        assert_eq!(world.floats(x, 1), [3.0]);
    }
}

#[test]
fn wrong_buffers_types_and_states_are_refused_at_the_call() {
    let world = world(Adversary::Late, 0);
    world.ranks(1, |rank| {
        let (world, c, comm, s) = (rank.world, rank.world.collectives(), rank.comm, rank.stream);
        let x = world.memory(8);
        let reduce = |at: *mut c_void, count, element, operation| {
            call!(c, HcclAllReduce(at, x, count, element, operation, comm, s))
        };
        assert_eq!(reduce(null_mut(), 1, F32, SUM), HCCL_E_PTR);
        assert_eq!(reduce(x, 3, F32, SUM), HCCL_E_PARA);
        assert!(world.message().contains("reach beyond allocation"));
        assert_eq!(reduce(x, 1, HCCL_DATA_TYPE_FP64, SUM), HCCL_E_NOT_SUPPORT);
        assert_eq!(reduce(x, 1, HCCL_DATA_TYPE_BFP16, HCCL_REDUCE_PROD), HCCL_E_NOT_SUPPORT);
        assert_eq!(reduce(x, 1, HCCL_DATA_TYPE_FP8E4M3, SUM), HCCL_E_NOT_SUPPORT);
        assert_eq!(reduce(x, 1, 13, SUM), HCCL_E_PARA);
        assert_eq!(call!(c, HcclAlltoAll(x, 1, F32, x, 1, F32, comm, s)), HCCL_E_PARA);
        assert_eq!(call!(c, HcclSend(x, 1, F32, 0, comm, s)), HCCL_E_PARA);
        let mut host = [0f32; 2];
        assert_eq!(reduce(host.as_mut_ptr().cast(), 1, F32, SUM), HCCL_E_PARA);
        assert_eq!(call!(c, HcclCommSuspend(comm)), 0);
        assert_eq!(reduce(x, 1, F32, SUM), HCCL_E_SUSPENDING);
        assert_eq!(call!(c, HcclCommResume(comm)), 0);
        assert_eq!(reduce(x, 1, F32, SUM), 0);
        rank.done();
        assert_eq!(call!(c, HcclGroupEnd()), HCCL_E_PARA);
        let text = call!(c, HcclGetErrorString(HCCL_E_TIMEOUT));
        // SAFETY: a text of the library's.
        assert_eq!(unsafe { std::ffi::CStr::from_ptr(text) }, c"timeout");
    });
}

#[test]
fn parts_of_a_clique_and_names_come_from_the_configuration() {
    let world = world(Adversary::Late, 0);
    let names = world.ranks(3, |rank| {
        let (world, c) = (rank.world, rank.world.collectives());
        let mut config = [0xffu8; 300];
        config[..8].copy_from_slice(&300u64.to_le_bytes());
        config[8..12].copy_from_slice(&0xf0f0_f0f0u32.to_le_bytes());
        config[32..160].fill(0);
        config[32..36].copy_from_slice(b"pair");
        let (mut parent, mut comm) = (rank.comm, null_mut());
        let config: *mut HcclCommConfig = config.as_mut_ptr().cast();
        let mut ids = [2u32, 0];
        let create = |ids: *mut u32, place: u32, parent: &mut HcclComm, comm: &mut HcclComm| {
            call!(c, HcclCreateSubCommConfig(parent, 2, ids, 7, place, config, comm))
        };
        if rank.rank == 1 {
            assert_eq!(create(ids.as_mut_ptr(), 1, &mut parent, &mut comm), HCCL_E_PARA);
            assert_eq!(create(null_mut(), 0, &mut parent, &mut comm), 0);
            assert!(comm.is_null());
            return String::new();
        }
        let place = if rank.rank == 2 { 0 } else { 1 };
        assert_eq!(create(ids.as_mut_ptr(), place, &mut parent, &mut comm), 0, "{}", world.message());
        let x = world.upload(&[rank.rank as f32, 0.0]);
        let send = x;
        let recv = world.memory(8);
        assert_eq!(call!(c, HcclAllGather(send, recv, 1, F32, comm, rank.stream)), 0);
        rank.done();
        assert_eq!(world.floats(recv, 2), [2.0, 0.0]);
        let mut name = [0 as std::ffi::c_char; 128];
        assert_eq!(call!(c, HcclGetCommName(comm, name.as_mut_ptr())), 0);
        assert_eq!(call!(c, HcclCommDestroy(comm)), 0);
        // SAFETY: a text with its zero byte.
        unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) }.to_str().unwrap().to_owned()
    });
    assert_eq!(names, ["pair", "", "pair"]);
}

#[test]
fn a_captured_collective_meets_anew_with_every_run() {
    for (adversary, seed) in adversaries() {
        let world = world(adversary, seed);
        let got = world.ranks(2, |rank| {
            let (world, runtime, s) = (rank.world, rank.world.runtime(), rank.stream);
            let x = world.upload(&[rank.rank as f32 + 1.0]);
            let mut graph = null_mut();
            assert_eq!(call!(runtime, aclmdlRICaptureBegin(s, ACL_MODEL_RI_CAPTURE_MODE_THREAD_LOCAL)), 0);
            assert_eq!(rank.all_reduce(x, x, 1), 0);
            assert_eq!(call!(runtime, aclmdlRICaptureEnd(s, &mut graph)), 0);
            for _ in 0..3 {
                assert_eq!(call!(runtime, aclmdlRIExecuteAsync(graph, s)), 0);
            }
            // One more outside of the graph.
            assert_eq!(rank.all_reduce(x, x, 1), 0);
            rank.done();
            world.floats(x, 1)[0]
        });
        assert_eq!(got, [24.0, 24.0], "{adversary:?} {seed}");
    }
}

#[test]
fn sums_of_half_precision_depend_on_the_seed_unless_order_was_asked_for() {
    // 2048 + 1 + 1 in half precision is 2048 from the left, and 2050 from the right.
    let sum = |seed: u64| {
        let world = world(Adversary::Late, seed);
        let sums = world.ranks(3, |rank| {
            let half: u16 = if rank.rank == 0 { 0x6800 } else { 0x3c00 };
            let x = rank.world.upload(&[half]);
            let c = rank.world.collectives();
            let code = call!(c, HcclAllReduce(x, x, 1, HCCL_DATA_TYPE_FP16, SUM, rank.comm, rank.stream));
            assert_eq!(code, 0);
            rank.done();
            rank.world.read::<u16>(x, 1)[0]
        });
        assert!(sums.iter().all(|sum| *sum == sums[0]), "ranks differ: {sums:?}");
        sums[0]
    };
    let sums: Vec<u16> = (0..8).map(sum).collect();
    assert!(sums.contains(&0x6800) && sums.contains(&0x6801), "{sums:x?}");
}
