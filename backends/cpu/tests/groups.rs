//! Groups of ranks behind decorators: ranks that die or come late as a plan says, and traces of what ranks did together.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{
    AllGather, AllReduce, AllToAll, Barrier, Broadcast, Exchange, ExpertFfn, ExpertParallelFfn,
    ReduceScatter, ReduceTo,
};
use portolan_core::decorate::{FaultPlan, Faulty, ShadowLog, Span, TraceLog};
use portolan_core::{
    Backend, CollectiveKind, Collectives, CommConfig, CommId, Communicator, Experts, OpKind, P2p, Registry,
    Stream, Tensor,
};
use portolan_cpu::{CpuBackend, CpuOptions, Executor};
use portolan_ops::comm::ReduceOp;
use portolan_ops::{Determinism, ErrorKind, OpError, Result, Shape};
use rig::{down, f32s, stream, up};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Beyond what any of these takes: only a rank that nobody told of a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(50);
/// The deadline of groups in which a rank will not come.
const DEADLINE: Duration = Duration::from_millis(300);

fn cpu(executor: Executor) -> Arc<CpuBackend> {
    let memory_limit = Some(256 << 20);
    CpuBackend::new(CpuOptions { executor, threads: Some(1), memory_limit, ..CpuOptions::default() }).unwrap()
}

fn config(id: CommId, rank: u32, world_size: u32, timeout: Duration) -> CommConfig {
    CommConfig { id, rank, world_size, timeout, determinism: Determinism::RunToRun }
}

struct Peer {
    stream: Stream,
    comm: Communicator,
    backend: Arc<dyn Backend>,
}

impl Peer {
    fn rank(&self) -> usize {
        self.comm.ranks().index()
    }

    /// A membership of another group of as many, on a stream of its own.
    fn another(&self, id: CommId) -> (Stream, Communicator) {
        let stream = stream(&Registry::new().with(self.backend.clone()).open("cpu:0").unwrap());
        let ranks = self.comm.ranks();
        let comm = Communicator::join(&stream, &config(id, ranks.rank(), ranks.world_size(), PATIENCE));
        (stream, comm.unwrap())
    }
}

/// Runs `body` on a thread for each rank, each on the backend that `around` makes for it.
fn on_ranks<T: Send>(
    world: u32,
    timeout: Duration,
    around: impl Fn(u32) -> Arc<dyn Backend> + Sync,
    body: impl Fn(Peer) -> T + Sync,
) -> Vec<T> {
    let id = Collectives::new_id(around(0).as_ref()).unwrap();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world)
            .map(|rank| {
                let (around, body) = (&around, &body);
                scope.spawn(move || {
                    let backend = around(rank);
                    let device = Registry::new().with(backend.clone()).open("cpu:0").unwrap();
                    let stream = stream(&device);
                    let comm = Communicator::join(&stream, &config(id, rank, world, timeout)).unwrap();
                    body(Peer { stream, comm, backend })
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// All ranks on one backend on which a plan comes true.
fn planned(plan: &str) -> (Faulty, impl Fn(u32) -> Arc<dyn Backend> + Sync + use<>) {
    let (backend, faulty) = plan.parse::<FaultPlan>().unwrap().around(cpu(Executor::Queued));
    (faulty, move |_| backend.clone())
}

/// Where ranks wait for each other beside their groups; one that panicked is not waited for for ever.
#[derive(Default)]
struct Meeting(AtomicUsize);

impl Meeting {
    fn wait(&self, world: usize) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let end = Instant::now() + PATIENCE;
        while self.0.load(Ordering::SeqCst) < world && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn sum(peer: &Peer, x: &Tensor) -> Result<()> {
    peer.stream.run(AllReduce::sum(&peer.comm, x, &mut x.clone())?)?;
    peer.stream.synchronize()
}

/// Operator, sequence number, rank and reason of the error that a group ended with.
fn ended(result: Result<()>) -> (String, u64, u32, String) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeviceLost);
    let source = match &error {
        OpError::Poisoned { source, .. } => source.as_ref(),
        other => other,
    };
    match source {
        OpError::Collective { op, seq, rank, what, .. } => (op.to_string(), *seq, *rank, what.clone()),
        other => panic!("{other}"),
    }
}

/// Runs `attempt` until it takes no longer than the deadline and a second: a busy machine is late now and then, a rank
/// that nobody told always.
fn in_time(attempt: impl Fn() -> Duration) {
    let mut took = Vec::new();
    while took.len() < 5 {
        took.push(attempt());
        if took.last().is_some_and(|took| *took <= DEADLINE + Duration::from_secs(1)) {
            return;
        }
    }
    panic!("survivors were told after {took:?}");
}

#[test]
fn a_dead_rank_is_named_on_every_survivor_in_time_and_other_groups_go_on() {
    in_time(|| {
        let (faulty, around) = planned("dead(1)@3");
        let (second, all_know) = (Collectives::new_id(around(0).as_ref()).unwrap(), Meeting::default());
        let took = on_ranks(3, DEADLINE, around, |peer| {
            let (spare, other) = peer.another(second);
            let x = up(&peer.stream, &[1.0; 40]);
            for _ in 0..2 {
                sum(&peer, &x).unwrap();
            }
            let start = Instant::now();
            let (op, seq, rank, what) = ended(sum(&peer, &x));
            let took = start.elapsed();
            assert_eq!((op.as_str(), seq, rank), ("all_reduce", 2, 1), "{what}");
            // Nobody told the survivors: the dead one is there, and silent, until all know.
            let said =
                if peer.rank() == 1 { "died, as the fault plan says" } else { "did not come within 300ms" };
            assert_eq!(what, said);
            all_know.wait(3);
            // The group is over for everybody, on streams that are well, too.
            let well = rig::stream(&peer.stream.device());
            for _ in 0..2 {
                let ran = Barrier::new(&peer.comm).and_then(|barrier| well.run(barrier));
                assert_eq!(ended(ran).2, 1);
            }
            assert_eq!(ended(peer.comm.health()).2, 1);
            well.synchronize().unwrap();
            let y = up(&spare, &[2.0; 5]);
            spare.run(AllReduce::sum(&other, &y, &mut y.clone()).unwrap()).unwrap();
            assert_eq!(down(&spare, &y), [6.0; 5]);
            if peer.rank() == 1 { Duration::ZERO } else { took }
        });
        assert_eq!(faulty.struck(), ["dead(1)@3 struck all_reduce #2 of rank 1"]);
        took.into_iter().max().unwrap()
    });
}

#[test]
fn a_rank_that_is_late_within_the_deadline_changes_nothing() {
    for executor in [Executor::Inline, Executor::Queued] {
        let (backend, faulty) = "slow(0,40)@2".parse::<FaultPlan>().unwrap().around(cpu(executor));
        let waited = on_ranks(
            3,
            PATIENCE,
            |_| backend.clone(),
            |peer| {
                let x = up(&peer.stream, &[1.0; 4]);
                sum(&peer, &x).unwrap();
                let start = Instant::now();
                sum(&peer, &x).unwrap();
                assert_eq!(down(&peer.stream, &x), [9.0; 4]);
                start.elapsed()
            },
        );
        assert!(waited[0] >= Duration::from_millis(40), "{waited:?}");
        assert_eq!(faulty.struck(), ["slow(0,40)@2 struck all_reduce #1 of rank 0"]);
    }
}

#[test]
fn a_rank_that_is_later_than_the_deadline_is_named_on_every_rank_in_time() {
    in_time(|| {
        let (_, around) = planned("slow(2,900)@2:all_reduce");
        let took = on_ranks(3, DEADLINE, around, |peer| {
            let x = up(&peer.stream, &[1.0; 4]);
            sum(&peer, &x).unwrap();
            // Not an all_reduce, so the plan does not count it.
            peer.stream.run(Barrier::new(&peer.comm).unwrap()).unwrap();
            peer.stream.synchronize().unwrap();
            let start = Instant::now();
            let (op, seq, rank, what) = ended(sum(&peer, &x));
            assert_eq!((op.as_str(), seq, rank), ("all_reduce", 2, 2), "{what}");
            assert_eq!(what, "did not come within 300ms");
            if peer.rank() == 2 { Duration::ZERO } else { start.elapsed() }
        });
        took.into_iter().max().unwrap()
    });
}

/// One operator over ranks of each kind, by its name.
fn run_kind(peer: &Peer, kind: CollectiveKind) -> Result<()> {
    let (s, comm, world) = (&peer.stream, &peer.comm, peer.comm.ranks().count());
    let x = up(s, &vec![1.0; 2 * world]);
    let (mut out, mut part) = (s.empty(x.spec())?, s.empty(&f32s(2))?);
    match kind {
        CollectiveKind::AllReduce => s.run(AllReduce::sum(comm, &x, &mut out)?),
        CollectiveKind::ReduceTo => {
            let out = (comm.rank() == 0).then_some(&mut out);
            s.run(ReduceTo::new(comm, ReduceOp::Sum, 0, &x, out)?)
        }
        CollectiveKind::ReduceScatter => s.run(ReduceScatter::new(comm, ReduceOp::Sum, &x, &mut part)?),
        CollectiveKind::AllGather => s.run(AllGather::new(comm, &x.narrow(0, 0, 2)?, &mut out)?),
        CollectiveKind::AllToAll => s.run(AllToAll::new(comm, &x, &mut out)?),
        CollectiveKind::Broadcast => s.run(Broadcast::new(comm, 0, &mut out)?),
        CollectiveKind::Exchange => {
            let peer = (comm.rank() + 1) % comm.world_size();
            let from = (comm.rank() + comm.world_size() - 1) % comm.world_size();
            let parts = [P2p::Send { tensor: x, peer }, P2p::Recv { tensor: out, peer: from }];
            s.run(Exchange::new(comm, &parts)?)
        }
        CollectiveKind::Barrier => s.run(Barrier::new(comm)?),
        other => panic!("{other} is not tried"),
    }
}

/// Operators over ranks in which the ranks meet once; one is composed of others.
fn kinds() -> Vec<CollectiveKind> {
    CollectiveKind::ALL.iter().copied().filter(|kind| *kind != CollectiveKind::ExpertParallelFfn).collect()
}

#[test]
fn a_rank_may_die_in_any_operator_over_ranks() {
    for kind in kinds() {
        let (faulty, around) = planned(&format!("dead(1)@1:{kind}"));
        let all_know = Meeting::default();
        on_ranks(3, DEADLINE, around, |peer| {
            let ran = kinds().into_iter().try_for_each(|kind| run_kind(&peer, kind));
            let (op, seq, rank, what) = ended(ran.and_then(|()| peer.stream.synchronize()));
            let place = kinds().iter().position(|other| *other == kind).unwrap();
            assert_eq!((op.as_str(), seq, rank), (kind.name(), place as u64, 1), "{what}");
            all_know.wait(3);
        });
        assert_eq!(faulty.struck().len(), 1, "{kind}: {:?}", faulty.struck());
    }
}

#[test]
fn a_rank_that_is_killed_inside_a_reduction_is_named_on_every_survivor_in_time_and_other_groups_go_on() {
    // Three reads of the sum, two of the others' shares behind a fence: by their seeds plans die in either, or before the
    // last fence.
    const LEN: usize = 6000;
    let mut places = Vec::new();
    for seed in 0..8 {
        let text = format!("seed={seed}; killed(1)@?3:all_reduce");
        let strikes = text.parse::<FaultPlan>().unwrap().occurrence(0);
        places.push(strikes);
        in_time(|| {
            let (faulty, around) = planned(&text);
            let (second, all_know) = (Collectives::new_id(around(0).as_ref()).unwrap(), Meeting::default());
            let took = on_ranks(3, DEADLINE, around, |peer| {
                let (spare, other) = peer.another(second);
                let x = up(&peer.stream, &[1.0; LEN]);
                peer.stream.run(Barrier::new(&peer.comm).unwrap()).unwrap();
                for _ in 1..strikes {
                    sum(&peer, &x).unwrap();
                }
                let start = Instant::now();
                let (op, seq, rank, what) = ended(sum(&peer, &x));
                let took = start.elapsed();
                assert_eq!((op.as_str(), seq, rank), ("all_reduce", strikes, 1), "{text}: {what}");
                match peer.rank() {
                    1 => assert_eq!(what, "died, as the fault plan says"),
                    // They wait for it, or find its memory gone.
                    _ => assert!(
                        ["did not come within 300ms", "ended its part early"].contains(&&*what),
                        "{what}"
                    ),
                }
                all_know.wait(3);
                assert_eq!(ended(peer.comm.health()).2, 1);
                let ran = Barrier::new(&peer.comm)
                    .and_then(|barrier| rig::stream(&peer.stream.device()).run(barrier));
                assert_eq!(ended(ran).2, 1, "it stays dead");
                // Not an all_reduce: the plan counts those of every group.
                let (y, mut all) = (up(&spare, &[2.0; 5]), spare.empty(&f32s(15)).unwrap());
                spare.run(AllGather::new(&other, &y, &mut all).unwrap()).unwrap();
                assert_eq!(down(&spare, &all), [2.0; 15]);
                if peer.rank() == 1 { Duration::ZERO } else { took }
            });
            assert_eq!(
                faulty.struck(),
                [format!("killed(1)@?3:all_reduce struck all_reduce #{strikes} of rank 1")]
            );
            took.into_iter().max().unwrap()
        });
    }
    assert!(places.iter().any(|at| *at != places[0]), "the seed chooses: {places:?}");
}

#[test]
fn a_rank_may_be_killed_within_any_operator_over_ranks() {
    for executor in [Executor::Inline, Executor::Queued, Executor::Chaotic { seed: 3 }] {
        for kind in kinds() {
            let plan: FaultPlan = format!("killed(2)@1:{kind}").parse().unwrap();
            let (backend, faulty) = plan.around(cpu(executor));
            let all_know = Meeting::default();
            on_ranks(
                3,
                DEADLINE,
                |_| backend.clone(),
                |peer| {
                    let run = |kind| run_kind(&peer, kind).and_then(|()| peer.stream.synchronize());
                    let (op, seq, rank, what) = ended(kinds().into_iter().try_for_each(run));
                    let place = kinds().iter().position(|other| *other == kind).unwrap();
                    assert_eq!(
                        (op.as_str(), seq, rank),
                        (kind.name(), place as u64, 2),
                        "{executor:?}: {what}"
                    );
                    all_know.wait(3);
                },
            );
            assert_eq!(faulty.struck().len(), 1, "{executor:?}, {kind}: {:?}", faulty.struck());
        }
    }
}

#[test]
fn each_part_of_a_split_group_counts_for_itself() {
    let (faulty, around) = planned("dead(1)@2");
    on_ranks(4, PATIENCE, around, |peer| {
        let rank = peer.rank() as u32;
        let part = peer.comm.split(Some(rank / 2), 0).unwrap().unwrap();
        let part = Peer { comm: part, ..peer };
        let x = up(&part.stream, &[1.0]);
        sum(&part, &x).unwrap();
        assert_eq!(down(&part.stream, &x), [2.0]);
        // The second rank of either pair dies at its second sum; leaving tells the other one.
        let told = ended(sum(&part, &x));
        assert_eq!((told.0.as_str(), told.1, told.2), ("all_reduce", 1, 1), "{}", told.3);
    });
    assert_eq!(faulty.struck().len(), 2, "{:?}", faulty.struck());
}

#[test]
fn faults_of_launches_befall_operators_over_ranks_and_the_others_are_told_before_the_deadline() {
    for (plan, said) in [
        ("refused@1:all_reduce", "INJECTED_LAUNCH_FAILURE"),
        ("lost@1:all_reduce", "INJECTED_DEVICE_LOST"),
        ("failed@1:all_reduce", "has a stream that failed in all_reduce #1, as the fault plan says"),
    ] {
        // One rank alone has a plan.
        let shared: Arc<dyn Backend> = cpu(Executor::Queued);
        let (faulty, struck) = plan.parse::<FaultPlan>().unwrap().around(shared.clone());
        let around = |rank| if rank == 1 { faulty.clone() } else { shared.clone() };
        let all_know = Meeting::default();
        on_ranks(3, PATIENCE, around, |peer| {
            peer.stream.run(Barrier::new(&peer.comm).unwrap()).unwrap();
            peer.stream.synchronize().unwrap();
            let x = up(&peer.stream, &[1.0; 4]);
            let ran = sum(&peer, &x);
            match peer.rank() {
                1 => assert_eq!(ran.unwrap_err().kind(), ErrorKind::DeviceLost),
                _ => {
                    let (op, seq, rank, what) = ended(ran);
                    assert_eq!((op.as_str(), seq, rank), ("all_reduce", 1, 1), "{plan}: {what}");
                    assert!(what.contains(said), "{plan}: {what}");
                }
            }
            all_know.wait(3);
        });
        assert_eq!(struck.struck().len(), 1, "{plan}");
    }
    // A wrong result is wrong on one rank, silently.
    let (_, around) = planned("wrong(0.5)@1:all_reduce");
    let got = on_ranks(2, PATIENCE, around, |peer| {
        let x = up(&peer.stream, &[1.0; 4]);
        sum(&peer, &x).unwrap();
        down(&peer.stream, &x).iter().filter(|x| **x != 2.0).count()
    });
    assert_eq!(got.iter().sum::<usize>(), 1, "{got:?}");
}

#[test]
fn a_collective_is_one_event_with_its_bytes_its_rank_and_its_number() {
    let log = TraceLog::new();
    let backend = log.around(cpu(Executor::Queued));
    let lanes = on_ranks(
        3,
        PATIENCE,
        |_| backend.clone(),
        |peer| {
            let part = peer.comm.split(Some(0), 2 - peer.comm.rank()).unwrap().unwrap();
            for kind in kinds() {
                run_kind(&peer, kind).unwrap();
            }
            peer.stream.run(Barrier::new(&part).unwrap()).unwrap();
            peer.stream.synchronize().unwrap();
        },
    );
    assert_eq!(lanes.len(), 3);
    let spans = log.spans();
    let spans: Vec<&Span> = spans.iter().filter(|span| span.step.is_some()).collect();
    assert_eq!(spans.len(), 3 * (kinds().len() + 1), "{spans:?}");
    let mut seen: Vec<(u32, u64, String)> = spans
        .iter()
        .map(|span| {
            let step = span.step.unwrap();
            assert_eq!(step.ranks.world_size(), 3);
            assert!(matches!(span.kind, Some(OpKind::Collective(_))) && span.composed.is_none());
            (step.ranks.rank(), step.seq, span.op.to_string())
        })
        .collect();
    seen.sort();
    for rank in 0..3 {
        let mut want: Vec<(u32, u64, String)> =
            (0..).zip(kinds()).map(|(seq, kind)| (rank, seq, kind.to_string())).collect();
        // The part's numbers begin anew.
        want.push((rank, 0, "barrier".into()));
        want.sort();
        assert_eq!(seen.iter().filter(|(of, ..)| *of == rank).cloned().collect::<Vec<_>>(), want);
    }
    // Six floats of which two are a share, in a ring of three: 2·(3 − 1)/3 of 24 bytes.
    let sums: Vec<&&Span> = spans.iter().filter(|span| span.op == "all_reduce").collect();
    assert!(sums.iter().all(|span| span.cost.bytes_comm == 32), "{sums:?}");
    let x = f32s(6);
    assert!(sums.iter().all(|span| *span.operands == format!("x {x}, → out {x}")), "{sums:?}");
    // Nobody leaves a sum before everybody has come.
    let ends = |span: &Span| span.start + span.took;
    for sum in &sums {
        assert!(sums.iter().all(|other| ends(other) >= sum.start), "{sums:?}");
    }
}

fn shadow() -> ShadowLog {
    ShadowLog::new(&stream(&Registry::new().with(cpu(Executor::Inline)).open("cpu:0").unwrap()))
}

#[test]
fn operators_over_ranks_are_compared_with_their_contracts_from_what_all_ranks_gave() {
    for executor in [Executor::Inline, Executor::Queued, Executor::Chaotic { seed: 5 }] {
        let log = shadow();
        let backend = log.around(cpu(executor));
        on_ranks(
            3,
            PATIENCE,
            |_| backend.clone(),
            |peer| {
                for kind in kinds() {
                    run_kind(&peer, kind).unwrap();
                }
                // Two of the three, in another order; the part counts from 0, too.
                let color = (peer.rank() != 1).then_some(7);
                if let Some(part) = peer.comm.split(color, 2 - peer.comm.rank()).unwrap() {
                    let x = up(&peer.stream, &[peer.rank() as f32 + 0.1; 9]);
                    peer.stream
                        .run(AllReduce::new(&part, ReduceOp::Mean, &x, &mut x.clone()).unwrap())
                        .unwrap();
                    assert!(down(&peer.stream, &x).iter().all(|mean| (mean - 1.1).abs() < 1e-6));
                }
            },
        );
        if let Some(first) = log.first() {
            panic!("{executor:?}: {first}");
        }
        for row in log.agreements() {
            let sums = if row.op == "all_reduce" { 5 } else { 3 };
            assert_eq!((row.compared, row.skipped), (sums, 0), "{executor:?}: {row:?}");
        }
        assert_eq!(log.agreements().len(), kinds().len());
    }
}

#[test]
fn a_wrong_sum_on_one_rank_is_found_there_with_what_all_ranks_gave() {
    let log = shadow();
    let shared: Arc<dyn Backend> = cpu(Executor::Queued);
    let plan: FaultPlan = "seed=4; wrong(0.001)@2:all_reduce".parse().unwrap();
    let faulty = log.around(plan.around(shared.clone()).0);
    let healthy = log.around(shared);
    let around = |rank| if rank == 1 { faulty.clone() } else { healthy.clone() };
    on_ranks(3, PATIENCE, around, |peer| {
        let x = up(&peer.stream, &[0.25 * (peer.rank() as f32 + 1.0); 24]);
        for _ in 0..3 {
            let mut out = peer.stream.empty(x.spec()).unwrap();
            peer.stream.run(AllReduce::sum(&peer.comm, &x, &mut out).unwrap()).unwrap();
        }
        peer.stream.synchronize().unwrap();
    });
    let found = log.first().unwrap();
    assert_eq!(found.kind, OpKind::Collective(CollectiveKind::AllReduce));
    assert!(found.devices[0].ends_with("rank 1") && found.devices[1].contains("reference"), "{found}");
    assert_eq!((found.operand.as_str(), found.element.len(), found.mismatch.failures), ("out", 1, 1));
    assert!((found.mismatch.got - 1.501).abs() < 1e-6 && found.mismatch.want == 1.5, "{found}");
    assert_eq!(found.input("x").unwrap().to_f64(), [0.5; 24]);
    assert_eq!(found.input("given by rank 2").unwrap().to_f64(), [0.75; 24]);
    let [row] = &log.agreements()[..] else { panic!("{:?}", log.agreements()) };
    assert_eq!((row.compared, row.diverged, row.skipped), (9, 1, 0));
}

#[test]
fn a_group_of_which_one_rank_is_not_wrapped_is_not_compared_and_says_so() {
    let log = shadow();
    let shared: Arc<dyn Backend> = cpu(Executor::Queued);
    let wrapped = log.around(shared.clone());
    let around = |rank| if rank == 1 { shared.clone() } else { wrapped.clone() };
    on_ranks(2, PATIENCE, around, |peer| {
        let x = up(&peer.stream, &[1.0; 3]);
        (0..80).for_each(|_| sum(&peer, &x).unwrap());
    });
    assert!(log.first().is_none());
    let [row] = &log.agreements()[..] else { panic!("{:?}", log.agreements()) };
    assert_eq!((row.compared, row.skipped), (0, 80 - 64));
    assert_eq!(row.why.as_deref(), Some("not all ranks of its group were seen"));
}

/// The operator over ranks that is composed of others: every rank has an expert and two tokens.
fn experts(peer: &Peer) -> Result<()> {
    let (s, world) = (&peer.stream, peer.comm.ranks().count());
    let matrix = |dims: &[usize]| up(s, &vec![0.5; dims.iter().product()]).reshape(dims);
    let (x, shares) = (matrix(&[2, 4])?, matrix(&[2, 1])?);
    let ids = s.upload(&[0, world as i32 - 1], &Shape::new(&[2, 1])?)?;
    let (gate_up, down) = (Experts::dense(matrix(&[1, 6, 4])?)?, Experts::dense(matrix(&[1, 4, 3])?)?);
    let mut out = s.empty(x.spec())?;
    let network = ExpertFfn::new(&x, &ids, &shares, &gate_up, &down, &mut out)?;
    s.run(ExpertParallelFfn::new(&peer.comm, 2, &network)?)?;
    s.synchronize()
}

#[test]
fn experts_over_ranks_are_compared_with_their_contract_and_a_rank_that_dies_in_them_is_named() {
    let log = shadow();
    let backend = log.around(cpu(Executor::Queued));
    on_ranks(3, PATIENCE, |_| backend.clone(), |peer| experts(&peer).unwrap());
    if let Some(first) = log.first() {
        panic!("{first}");
    }
    let rows = log.agreements();
    let row = rows.iter().find(|row| row.op == "expert_parallel_ffn").unwrap();
    assert_eq!((row.compared, row.skipped), (3, 0), "{row:?}");
    in_time(|| {
        let (faulty, around) = planned("dead(1)@1:expert_parallel_ffn");
        let all_know = Meeting::default();
        let took = on_ranks(3, DEADLINE, around, |peer| {
            let start = Instant::now();
            let (_, _, rank, what) = ended(experts(&peer));
            assert_eq!(rank, 1, "{what}");
            let took = start.elapsed();
            all_know.wait(3);
            took
        });
        assert_eq!(faulty.struck().len(), 1, "{:?}", faulty.struck());
        took.into_iter().max().unwrap()
    });
}
