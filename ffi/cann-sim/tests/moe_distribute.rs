//! Tokens sent to the devices of their experts and back, by operators that communicate over a group.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::bindings::*;
use portolan_cann_sys::sim::{Adversary, SimOptions};
use rig::{World, call, operator};
use std::ffi::{CString, c_char, c_void};
use std::ptr::{null, null_mut};
use std::time::Duration;

const RANKS: usize = 2;
const EXPERTS: usize = 4;
const LOCAL: usize = EXPERTS / RANKS;
const TOKENS: usize = 3;
const K: usize = 2;
const H: usize = 32;
/// Rows that a rank has room for.
const ROOM: usize = TOKENS * RANKS * K;

fn world(adversary: Adversary, seed: u64) -> World {
    let execution_timeout = Some(Duration::from_millis(200));
    World::new(SimOptions {
        adversary,
        seed,
        memory_bytes: 64 << 20,
        execution_timeout,
        ..SimOptions::default()
    })
}

/// A small integer as the bits of half precision, and back.
fn half(x: u32) -> u16 {
    let exponent = 31 - x.leading_zeros();
    (((exponent + 15) << 10) | ((x << (10 - exponent)) & 0x3ff)) as u16
}

fn value(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10) - 15, f32::from(bits & 0x3ff));
    if bits == 0 { 0.0 } else { (1.0 + fraction / 1024.0) * 2f32.powi(exponent) }
}

/// Element 0 of a token's row; the others count up from it.
fn token(rank: usize, token: usize) -> u32 {
    1 + (rank * TOKENS + token) as u32 * 100
}

/// Every token's two experts: of different ranks, of one, and both ranks' the same.
const IDS: [[[i32; K]; TOKENS]; RANKS] = [[[0, 3], [1, 0], [2, 1]], [[3, 2], [0, 2], [1, 3]]];

struct Rank<'w> {
    world: &'w World,
    rank: usize,
    stream: aclrtStream,
    group: CString,
    ids: *mut aclTensor,
    expanded: *mut c_void,
    assist: *mut c_void,
    received: *mut c_void,
    counts: *mut c_void,
}

impl Rank<'_> {
    fn group(&self) -> *const c_char {
        self.group.as_ptr()
    }

    /// Dispatches with a rank's number, which may be wrong.
    fn dispatch(&self, newer: bool, number: i64, kind: i64) -> i32 {
        let world = self.world;
        let rows: Vec<u16> = (0..TOKENS)
            .flat_map(|at| (0..H as u32).map(move |j| (at, j)))
            .map(|(at, j)| half(token(self.rank, at) + j))
            .collect();
        let x = world.tensor(ACL_FLOAT16, &[TOKENS as i64, H as i64], world.upload(&rows));
        let out = world.tensor(ACL_FLOAT16, &[ROOM as i64, H as i64], self.expanded);
        let info = world.tensor(ACL_INT32, &[self.assist_length(newer)], self.assist);
        let tokens = world.tensor(ACL_INT64, &[LOCAL as i64], self.counts);
        let received = world.tensor(ACL_INT32, &[(LOCAL * RANKS) as i64], self.received);
        let (group, none, empty) = (self.group(), null::<aclTensor>(), c"".as_ptr());
        let (ranks, experts) = (RANKS as i64, EXPERTS as i64);
        let (s, nothing) = (self.stream, null_mut());
        if newer {
            operator!(
                world,
                s,
                aclnnMoeDistributeDispatchV2GetWorkspaceSize,
                aclnnMoeDistributeDispatchV2,
                x,
                self.ids,
                none,
                none,
                none,
                group,
                ranks,
                number,
                experts,
                empty,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                kind,
                empty,
                out,
                nothing,
                info,
                tokens,
                received,
                nothing,
                nothing
            )
        } else {
            operator!(
                world,
                s,
                aclnnMoeDistributeDispatchGetWorkspaceSize,
                aclnnMoeDistributeDispatch,
                x,
                self.ids,
                none,
                none,
                none,
                group,
                ranks,
                number,
                experts,
                empty,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                kind,
                out,
                nothing,
                info,
                tokens,
                received,
                nothing,
                nothing
            )
        }
    }

    fn assist_length(&self, newer: bool) -> i64 {
        if newer { ROOM as i64 * 128 } else { (TOKENS * K) as i64 }
    }

    fn combine(&self, newer: bool, weights: &[f32], to: *mut c_void) -> i32 {
        let world = self.world;
        let out = world.tensor(ACL_FLOAT16, &[TOKENS as i64, H as i64], to);
        let rows = world.tensor(ACL_FLOAT16, &[ROOM as i64, H as i64], self.expanded);
        let info = world.tensor(ACL_INT32, &[self.assist_length(newer)], self.assist);
        let received = world.tensor(ACL_INT32, &[(LOCAL * RANKS) as i64], self.received);
        let weights = world.tensor(ACL_FLOAT, &[TOKENS as i64, K as i64], world.upload(weights));
        let (group, none, empty) = (self.group(), null::<aclTensor>(), c"".as_ptr());
        let (ranks, experts, number) = (RANKS as i64, EXPERTS as i64, self.rank as i64);
        let s = self.stream;
        if newer {
            operator!(
                world,
                s,
                aclnnMoeDistributeCombineV2GetWorkspaceSize,
                aclnnMoeDistributeCombineV2,
                rows,
                self.ids,
                info,
                received,
                weights,
                none,
                none,
                none,
                none,
                none,
                none,
                none,
                group,
                ranks,
                number,
                experts,
                empty,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                empty,
                out
            )
        } else {
            operator!(
                world,
                s,
                aclnnMoeDistributeCombineGetWorkspaceSize,
                aclnnMoeDistributeCombine,
                rows,
                self.ids,
                info,
                received,
                weights,
                none,
                none,
                none,
                none,
                none,
                none,
                group,
                ranks,
                number,
                experts,
                empty,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                out
            )
        }
    }
}

/// Runs a function on both ranks, each a thread with a device of its own.
fn on_ranks<R: Send>(world: &World, body: impl Fn(&Rank<'_>) -> R + Sync) -> Vec<R> {
    let collectives = &world.0.libraries().collectives;
    let mut root = HcclRootInfo { internal: [0; 4108] };
    assert_eq!(call!(collectives, HcclGetRootInfo(&mut root)), 0);
    let (root, body) = (&root, &body);
    std::thread::scope(|scope| {
        let threads = (0..RANKS).map(|rank| {
            scope.spawn(move || {
                assert_eq!(call!(world.runtime(), aclrtSetDevice(rank as i32)), 0);
                let (mut comm, mut name) = (null_mut(), [0 as c_char; 128]);
                let size = RANKS as u32;
                assert_eq!(call!(collectives, HcclCommInitRootInfo(size, root, rank as u32, &mut comm)), 0);
                assert_eq!(call!(collectives, HcclGetCommName(comm, name.as_mut_ptr())), 0);
                // SAFETY: a text with its zero byte.
                let group = unsafe { std::ffi::CStr::from_ptr(name.as_ptr()) }.to_owned();
                let ids = world.upload(&IDS[rank]);
                let rank = Rank {
                    world,
                    rank,
                    stream: world.stream(),
                    group,
                    ids: world.tensor(ACL_INT32, &[TOKENS as i64, K as i64], ids),
                    expanded: world.memory(ROOM * H * 2),
                    assist: world.memory(ROOM * 128 * 4),
                    received: world.memory(LOCAL * RANKS * 4),
                    counts: world.memory(LOCAL * 8),
                };
                let result = body(&rank);
                assert_eq!(call!(collectives, HcclCommDestroy(comm)), 0);
                result
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn rows_reach_their_experts_in_order_and_come_back_weighted() {
    for (adversary, seed) in [(Adversary::Late, 0), (Adversary::Seeded, 1), (Adversary::Early, 0)] {
        for newer in [true, false] {
            let world = world(adversary, seed);
            let weights = |at: usize, slot: usize| 0.25 * (1 + at + slot) as f32;
            let got = on_ranks(&world, |rank| {
                assert_eq!(rank.dispatch(newer, rank.rank as i64, 1), 0, "{}", world.message());
                assert_eq!(world.synchronize(rank.stream), 0, "{}", world.message());
                let sums = world.read::<i32>(rank.received, LOCAL * RANKS);
                let counts = world.read::<i64>(rank.counts, LOCAL);
                let rows = sums[LOCAL * RANKS - 1] as usize;
                let mut first: Vec<u16> = world.read(rank.expanded, rows * H);
                let heads: Vec<f32> = first.iter().step_by(H).map(|&bits| value(bits)).collect();
                // Expert e doubles e times: exact in half precision.
                let edges: Vec<usize> =
                    [0].into_iter().chain((1..=LOCAL).map(|e| sums[e * RANKS - 1] as usize)).collect();
                for local in 0..LOCAL {
                    let expert = (rank.rank * LOCAL + local) as u16;
                    let part = &mut first[edges[local] * H..edges[local + 1] * H];
                    part.iter_mut().for_each(|bits| *bits += expert << 10);
                }
                let from = world.pinned(&first);
                assert_eq!(world.copy(rank.expanded, from, 2 * rows * H, rank.stream), 0);
                let scales: Vec<f32> = (0..TOKENS * K).map(|f| weights(f / K, f % K)).collect();
                let out = world.memory(TOKENS * H * 2);
                assert_eq!(rank.combine(newer, &scales, out), 0, "{}", world.message());
                assert_eq!(world.synchronize(rank.stream), 0, "{}", world.message());
                let out: Vec<f32> = world.read::<u16>(out, TOKENS * H).into_iter().map(value).collect();
                (sums, counts, heads, out)
            });
            for (rank, (sums, counts, heads, out)) in got.into_iter().enumerate() {
                // Straight from the definition: expert, then rank, then token.
                let (mut want_heads, mut want_sums, mut want_counts) = (vec![], vec![], vec![]);
                for expert in rank * LOCAL..(rank + 1) * LOCAL {
                    let before = want_heads.len();
                    for (from, ids) in IDS.iter().enumerate() {
                        let tokens = (0..TOKENS).filter(|&at| ids[at].contains(&(expert as i32)));
                        want_heads.extend(tokens.map(|at| token(from, at) as f32));
                        want_sums.push(want_heads.len() as i32);
                    }
                    want_counts.push((want_heads.len() - before) as i64);
                }
                assert_eq!((heads, sums, counts), (want_heads, want_sums, want_counts), "rank {rank}");
                for at in 0..TOKENS {
                    let of = |slot: usize| weights(at, slot) * 2f32.powi(IDS[rank][at][slot]);
                    for j in 0..H {
                        let want = (of(0) + of(1)) * (token(rank, at) + j as u32) as f32;
                        let got = out[at * H + j];
                        assert!(
                            (got - want).abs() <= want / 2048.0,
                            "rank {rank}, token {at}: {got}, not {want}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn running_sums_of_tokens_come_where_they_are_asked_for() {
    let world = world(Adversary::Late, 0);
    let counts = on_ranks(&world, |rank| {
        assert_eq!(rank.dispatch(true, rank.rank as i64, 0), 0);
        assert_eq!(world.synchronize(rank.stream), 0);
        world.read::<i64>(rank.counts, LOCAL)
    });
    // Experts 0 to 3 get three tokens each.
    assert_eq!(counts, [[3, 6], [3, 6]]);
}

#[test]
fn wrong_ranks_groups_and_buffers_are_refused_by_name() {
    let world = world(Adversary::Late, 0);
    let codes = on_ranks(&world, |rank| {
        let wrong = rank.dispatch(true, 1 - rank.rank as i64, 1);
        assert!(world.message().contains("has this device as rank"));
        let far = rank.dispatch(true, 2, 1);
        assert!(world.message().contains("epRankId = 2 of 2 ranks"));
        let nobody = Rank { group: c"nobody".to_owned(), ..*rank };
        let unknown = nobody.dispatch(true, rank.rank as i64, 1);
        assert!(world.message().contains("in no group of the name"));
        (wrong, far, unknown)
    });
    assert_eq!(codes, [(161002, 161002, 161002); 2]);
}

#[test]
fn what_the_dispatch_wrote_down_has_to_come_back_as_it_was() {
    let world = world(Adversary::Late, 0);
    let outcomes = on_ranks(&world, |rank| {
        assert_eq!(rank.dispatch(true, rank.rank as i64, 1), 0);
        assert_eq!(call!(world.runtime(), aclrtMemsetAsync(rank.assist, 4, 9, 4, rank.stream)), 0);
        let out = world.memory(TOKENS * H * 2);
        assert_eq!(rank.combine(true, &[1.0; TOKENS * K], out), 0);
        (world.synchronize(rank.stream), world.message().contains("was changed"))
    });
    assert_eq!(outcomes, [(507035, true); 2]);
}

#[test]
fn ranks_that_call_different_operators_are_refused() {
    let world = world(Adversary::Late, 0);
    let mut outcomes = on_ranks(&world, |rank| {
        let code = match rank.rank {
            0 => rank.dispatch(true, 0, 1),
            _ => rank.dispatch(false, 1, 1),
        };
        let message = world.message();
        (code, message.contains("aclnnMoeDistributeDispatch"), world.synchronize(rank.stream))
    });
    outcomes.sort();
    assert_eq!(outcomes[0], (0, false, 107020));
    assert_eq!(outcomes[1], (361001, true, 0));
}
