//! Experts over ranks by the vendor's operators that communicate: natively, in every version, captured, among ranks without
//! tokens, and with what goes wrong told by name.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_cann_sys::sim::{Adversary, SimOptions, SimWorld};
use portolan_core::call::{ExpertFfn, ExpertParallelFfn};
use portolan_core::{
    Backend, Collectives, CommConfig, Communicator, Experts, Fallback, Op, OpKind, Registry, Stream,
    StreamOptions, Support, Tensor,
};
use portolan_ops::comm::{Collective, ExpertParallelFfnSpec};
use portolan_ops::{
    DType, Determinism, ErrorKind, Fill, HostTensor, OpError, Result, Shape, TensorSpec, Unsupported,
};
use rig::{assert_empties, backend_in, options};
use std::sync::Arc;
use std::time::Duration;

const RANKS: usize = 3;
const EXPERTS: usize = 2;
const K: usize = 2;
const HIDDEN: usize = 32;
const INNER: usize = 48;
const MOST: usize = 5;

/// One rank: its stream allows no compositions.
struct Peer {
    stream: Stream,
    comm: Communicator,
}

impl Peer {
    fn rank(&self) -> usize {
        self.comm.ranks().index()
    }

    fn upload(&self, dims: &[usize], values: &[f64]) -> Tensor {
        let spec = TensorSpec::of(DType::BF16, dims).unwrap();
        let host = HostTensor::from_f64(&spec, values, 0).unwrap();
        let bytes = portolan_core::HostBuffer::from_bytes(host.bytes()).unwrap();
        self.stream.upload_bytes(&spec, bytes, &"operand".into()).unwrap()
    }

    fn download(&self, x: &Tensor) -> Vec<f64> {
        let mut bytes = self.stream.download_bytes(x.buffer()).unwrap().wait().unwrap();
        bytes.truncate(x.spec().span_bytes());
        HostTensor::from_bytes(x.spec(), bytes).unwrap().to_f64()
    }
}

fn on_ranks<T: Send>(world: &SimWorld, fallback: Fallback, body: impl Fn(Peer) -> T + Sync) -> Vec<T> {
    let backend = backend_in(world);
    let id = backend.new_id().unwrap();
    std::thread::scope(|scope| {
        let (backend, body) = (&backend, &body);
        let ranks = (0..RANKS as u32).map(|rank| {
            scope.spawn(move || {
                let backend: Arc<dyn Backend> = backend.clone();
                let device = Registry::new().with(backend).open(&format!("cann:{rank}")).unwrap();
                let timeout = Duration::from_secs(60);
                let stream = device.stream(StreamOptions { timeout, fallback, ..StreamOptions::default() });
                let stream = stream.unwrap();
                let determinism = Determinism::RunToRun;
                let config = CommConfig { id, rank, world_size: RANKS as u32, timeout, determinism };
                let comm = Communicator::join(&stream, &config).unwrap();
                body(Peer { stream, comm })
            })
        });
        ranks.collect::<Vec<_>>().into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn noise(dims: &[usize], seed: usize) -> Vec<f64> {
    let spec = TensorSpec::of(DType::BF16, dims).unwrap();
    let host = HostTensor::from_f64(&spec, &Fill::Unit.draw(&spec, seed as u64), 0).unwrap();
    host.to_f64()
}

/// The first rank has no tokens.
fn tokens(rank: usize) -> usize {
    [0, 3, MOST][rank]
}

fn ids(rank: usize) -> Vec<i32> {
    (0..tokens(rank) * K)
        .map(|place| ((5 * rank + 2 * (place / K) + place % K) % (RANKS * EXPERTS)) as i32)
        .collect()
}

/// What a rank gives, in the order of the operands.
fn given(rank: usize) -> Vec<Vec<f64>> {
    let shares = (0..tokens(rank) * K).map(|place| 0.25 + place as f64 / 32.0).collect();
    vec![
        noise(&[tokens(rank), HIDDEN], rank),
        ids(rank).into_iter().map(f64::from).collect(),
        shares,
        noise(&[EXPERTS, 2 * INNER, HIDDEN], 10 + rank),
        noise(&[EXPERTS, HIDDEN, INNER], 20 + rank),
    ]
}

/// The operator, its result in `out`.
fn network(peer: &Peer, ids: &[i32], out: &mut Tensor) -> Result<ExpertParallelFfn> {
    let [x, _, shares, gate_up, down] = <[_; 5]>::try_from(given(peer.rank())).unwrap();
    let rows = tokens(peer.rank());
    let places = Shape::new(&[rows, K])?;
    let x = peer.upload(&[rows, HIDDEN], &x);
    let ids = peer.stream.upload(ids, &places)?;
    let shares: Vec<f32> = shares.into_iter().map(|share| share as f32).collect();
    let shares = peer.stream.upload(&shares, &places)?;
    let gate_up = Experts::dense(peer.upload(&[EXPERTS, 2 * INNER, HIDDEN], &gate_up))?;
    let down = Experts::dense(peer.upload(&[EXPERTS, HIDDEN, INNER], &down))?;
    ExpertParallelFfn::new(&peer.comm, MOST, &ExpertFfn::new(&x, &ids, &shares, &gate_up, &down, out)?)
}

fn out(peer: &Peer) -> Tensor {
    peer.stream.empty(&TensorSpec::of(DType::BF16, &[tokens(peer.rank()), HIDDEN]).unwrap()).unwrap()
}

fn world(soc: &str, adversary: Adversary, hidden: &[&str]) -> SimWorld {
    let hidden = hidden.iter().map(|&symbol| symbol.to_owned()).collect();
    let execution_timeout = Some(Duration::from_millis(300));
    let devices = RANKS as u32;
    SimWorld::new(&SimOptions { devices, hidden, execution_timeout, ..options(soc, adversary, 1) }).unwrap()
}

/// Against the oracle over all ranks.
fn assert_right(parts: &[ExpertParallelFfnSpec], got: &[Vec<f64>]) {
    let given: Vec<Vec<Vec<f64>>> = (0..RANKS).map(given).collect();
    let inputs: Vec<Vec<&[f64]>> = given.iter().map(|of| of.iter().map(Vec::as_slice).collect()).collect();
    let want = ExpertParallelFfnSpec::reference(parts, &inputs);
    for (rank, (got, want)) in got.iter().zip(&want).enumerate() {
        let checked = parts[rank].tolerance()[0].check(got, &want[0]);
        checked.unwrap_or_else(|mismatch| panic!("rank {rank}: {mismatch}"));
        assert_eq!(got.len(), tokens(rank) * HIDDEN);
    }
}

/// Runs it natively, and gives the vendor's operators that communicate which were called.
fn runs_natively(world: &SimWorld) -> Vec<String> {
    let done = on_ranks(world, Fallback::Deny, |peer| {
        let mut out = out(&peer);
        let op = network(&peer, &ids(peer.rank()), &mut out).unwrap();
        let support = peer.stream.device().support(&op.query(Determinism::RunToRun));
        assert_eq!(support, Support::Native);
        let spec = op.spec().clone();
        peer.stream.run(op).unwrap();
        (spec, peer.download(&out))
    });
    let (parts, got): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    assert_right(&parts, &got);
    let called = world.calls(0).unwrap().into_iter().map(|call| call.name);
    let mut called: Vec<String> = called.filter(|name| name.starts_with("aclnnMoeDistribute")).collect();
    called.retain(|name| !name.ends_with("GetWorkspaceSize"));
    called.sort();
    called
}

#[test]
fn experts_over_ranks_run_natively_on_every_product_that_has_the_operators() {
    for (soc, adversary) in [
        ("A2", Adversary::Late),
        ("A3", Adversary::Early),
        ("A3", Adversary::Seeded),
        ("950", Adversary::Late),
    ] {
        let world = world(soc, adversary, &[]);
        let called = runs_natively(&world);
        assert_eq!(called.len(), 2 * RANKS, "{soc}: {called:?}");
        assert!(called.iter().all(|name| name.ends_with("V2")), "{soc}: {called:?}");
        assert_empties(&world);
    }
}

#[test]
fn drivers_without_the_newer_versions_are_served_by_the_older() {
    let newer =
        ["aclnnMoeDistributeDispatchV2GetWorkspaceSize", "aclnnMoeDistributeCombineV2GetWorkspaceSize"];
    // What one operator writes down, the other reads in its own version only.
    for hidden in [&newer[..], &newer[..1], &newer[1..]] {
        let old = world("A3", Adversary::Seeded, hidden);
        let called = runs_natively(&old);
        let want = [["aclnnMoeDistributeCombine"; RANKS], ["aclnnMoeDistributeDispatch"; RANKS]].concat();
        assert_eq!(called, want, "{hidden:?}");
        assert_empties(&old);
    }
}

#[test]
fn without_the_operators_it_is_composed_and_says_so() {
    let world = world(
        "A3",
        Adversary::Seeded,
        &["aclnnMoeDistributeDispatchV2GetWorkspaceSize", "aclnnMoeDistributeDispatchGetWorkspaceSize"],
    );
    let done = on_ranks(&world, Fallback::Allow, |peer| {
        let mut out = out(&peer);
        let op = network(&peer, &ids(peer.rank()), &mut out).unwrap();
        let support = peer.stream.device().support(&op.query(Determinism::RunToRun));
        assert!(
            matches!(&support, Support::Composed(why) if why.to_string().contains("MoeDistributeDispatch")),
            "{support:?}"
        );
        let (spec, kind) = (op.spec().clone(), op.kind());
        peer.stream.run(op).unwrap();
        let report = peer.stream.report();
        let composed = |(of, _, count): &(OpKind, Unsupported, u64)| *of == kind && *count == 1;
        assert!(report.compositions.iter().any(composed), "{report:?}");
        (spec, peer.download(&out))
    });
    let (parts, got): (Vec<_>, Vec<_>) = done.into_iter().unzip();
    assert_right(&parts, &got);
    assert_empties(&world);
}

#[test]
fn it_is_captured_and_replayed() {
    let world = world("A3", Adversary::Seeded, &[]);
    on_ranks(&world, Fallback::Deny, |peer| {
        let mut eager = out(&peer);
        peer.stream.run(network(&peer, &ids(peer.rank()), &mut eager).unwrap()).unwrap();
        let want = peer.download(&eager);
        let mut out = out(&peer);
        let op = network(&peer, &ids(peer.rank()), &mut out).unwrap();
        let graph = peer.stream.capture(|stream| stream.run(op.clone())).unwrap();
        for _ in 0..3 {
            graph.replay(&peer.stream).unwrap();
            assert_eq!(peer.download(&out), want, "rank {}", peer.rank());
        }
    });
    assert_empties(&world);
}

#[test]
fn an_expert_that_nobody_has_is_a_fault_on_every_rank_and_nothing_hangs() {
    let world = world("A3", Adversary::Late, &[]);
    let errors = on_ranks(&world, Fallback::Deny, |peer| {
        let mut ids = ids(peer.rank());
        if peer.rank() == 2 {
            ids[3] = (RANKS * EXPERTS) as i32;
        }
        let mut out = out(&peer);
        let ran = peer.stream.run(network(&peer, &ids, &mut out).unwrap());
        ran.and_then(|()| peer.stream.synchronize()).unwrap_err()
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::DeviceLost, "{error}");
    }
    assert_empties(&world);
}

#[test]
fn ranks_that_announce_different_numbers_of_tokens_are_told_so() {
    let world = world("A3", Adversary::Late, &[]);
    let errors = on_ranks(&world, Fallback::Deny, |peer| {
        let mut out = out(&peer);
        let op = network(&peer, &ids(peer.rank()), &mut out).unwrap();
        let most = if peer.rank() == 1 { MOST + 1 } else { MOST };
        let spec = ExpertParallelFfnSpec::new(peer.comm.ranks(), most, op.spec().network().clone()).unwrap();
        let tensors = op.tensors().unwrap();
        let tensors: Vec<&Tensor> = tensors.iter().map(|(_, tensor)| tensor).collect();
        let ran = peer.stream.run(ExpertParallelFfn::bind(&peer.comm, spec, &tensors).unwrap());
        ran.and_then(|()| peer.stream.synchronize()).unwrap_err()
    });
    for error in errors {
        let OpError::Collective { op, rank, .. } = &error else { panic!("{error}") };
        assert_eq!((op.to_string().as_str(), *rank), ("expert_parallel_ffn", 1), "{error}");
    }
    assert_empties(&world);
}
