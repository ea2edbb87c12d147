//! Bytes that ranks send, against the closed forms of the algorithms that send least, and whole models spread over ranks.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_core::call::{
    AllGather, AllReduce, AllToAll, Attention, Barrier, Binary, Broadcast, Exchange, ReduceScatter, ReduceTo,
    Swiglu,
};
use portolan_core::{
    Backend, Collectives, CommConfig, Communicator, ExpertParallel, Experts, Lens, OpKind, P2p, Registry,
    Stream, StreamOptions, Tensor, Weight, ops,
};
use portolan_meta::{Count, MetaBackend, MetaOptions};
use portolan_ops::comm::ReduceOp;
use portolan_ops::{Cost, DType, Determinism, OpError, Result, TensorSpec, Unsupported};
use std::sync::Arc;
use std::time::Duration;

fn spec(dtype: DType, dims: &[usize]) -> TensorSpec {
    TensorSpec::of(dtype, dims).unwrap()
}

/// One rank of a group, alone.
fn rank(rank: u32, world_size: u32, count: Count) -> (Stream, Communicator) {
    let backend: Arc<dyn Backend> = MetaBackend::new(MetaOptions { count, ..MetaOptions::default() });
    let id = backend.new_id().unwrap();
    let device = Registry::new().with(backend).open("meta:0").unwrap();
    let stream = device.stream(StreamOptions::default()).unwrap();
    let (timeout, determinism) = (Duration::ZERO, Determinism::RunToRun);
    let comm = Communicator::join(&stream, &CommConfig { id, rank, world_size, timeout, determinism });
    (stream, comm.unwrap())
}

/// What an operator sent, by the stream's account.
fn sent((at, world): (u32, u32), run: impl FnOnce(&Stream, &Communicator) -> Result<()>) -> u64 {
    let (stream, comm) = rank(at, world, Count::Fused);
    run(&stream, &comm).unwrap();
    let [row] = stream.report().operators[..] else { panic!("one operator ran") };
    assert!(matches!(row.kind, OpKind::Collective(_)));
    assert_eq!(row.composed.bytes_comm, row.fused.bytes_comm);
    row.fused.bytes_comm
}

#[test]
fn a_rank_sends_what_the_closed_forms_say() {
    // Parts equally among up to eight ranks.
    const ROWS: usize = 840;
    for dtype in [DType::F32, DType::BF16] {
        for n in 1..=8u32 {
            let size = ROWS * 3 * dtype.bytes_for(1);
            let (whole, part) = (spec(dtype, &[ROWS, 3]), spec(dtype, &[ROWS / n as usize, 3]));
            let (s, n64) = (size as u64, u64::from(n));
            for at in 0..n {
                let with = |x: &TensorSpec, out: &TensorSpec, run: &dyn Fn(&Stream, &Communicator, &Tensor, &mut Tensor) -> Result<()>| {
                    sent((at, n), |stream, comm| run(stream, comm, &stream.empty(x)?, &mut stream.empty(out)?))
                };
                // Rabenseifner 2004; Thakur, Rabenseifner and Gropp 2005: a reduce-scatter and an all-gather.
                let all_reduce =
                    with(&whole, &whole, &|s, comm, x, out| s.run(AllReduce::sum(comm, x, out)?));
                assert_eq!(all_reduce, 2 * (n64 - 1) * s / n64, "all_reduce, {at} of {n}");
                let reduce_scatter = with(&whole, &part, &|s, comm, x, out| {
                    s.run(ReduceScatter::new(comm, ReduceOp::Sum, x, out)?)
                });
                assert_eq!(reduce_scatter, (n64 - 1) * s / n64, "reduce_scatter, {at} of {n}");
                let all_gather = with(&part, &whole, &|s, comm, x, out| s.run(AllGather::new(comm, x, out)?));
                assert_eq!(all_gather, (n64 - 1) * s / n64, "all_gather, {at} of {n}");
                let all_to_all = with(&whole, &whole, &|s, comm, x, out| s.run(AllToAll::new(comm, x, out)?));
                assert_eq!(all_to_all, (n64 - 1) * s / n64, "all_to_all, {at} of {n}");
                // To each other rank, or passed on: n − 1 times in all, booked with the rank it comes from.
                let broadcast = with(&whole, &whole, &|s, comm, _, out| s.run(Broadcast::new(comm, 0, out)?));
                assert_eq!(broadcast, if at == 0 { (n64 - 1) * s } else { 0 }, "broadcast, {at} of {n}");
                let reduce = with(&whole, &whole, &|s, comm, x, out| {
                    let out = (at == 0).then_some(out);
                    s.run(ReduceTo::new(comm, ReduceOp::Sum, 0, x, out)?)
                });
                assert_eq!(reduce, if at == 0 { 0 } else { s }, "reduce, {at} of {n}");
                let ring = with(&whole, &whole, &|s, comm, x, out| {
                    let (next, before) = ((at + 1) % n, (at + n - 1) % n);
                    let parts = [
                        P2p::Send { tensor: x.clone(), peer: next },
                        P2p::Recv { tensor: out.clone(), peer: before },
                    ];
                    s.run(Exchange::new(comm, &parts)?)
                });
                assert_eq!(ring, if n == 1 { 0 } else { s }, "exchange, {at} of {n}");
                assert_eq!(sent((at, n), |s, comm| s.run(Barrier::new(comm)?)), 0);
            }
        }
    }
}

#[test]
fn shares_that_are_not_equal_add_up_to_the_closed_form() {
    for n in 2..=8u32 {
        for numel in [1, 5, 1001] {
            let x = spec(DType::F32, &[numel]);
            let all = (0..n).map(|at| {
                sent((at, n), |s, comm| {
                    let x = s.empty(&x)?;
                    s.run(AllReduce::sum(comm, &x, &mut x.clone())?)
                })
            });
            assert_eq!(all.sum::<u64>(), 2 * u64::from(n - 1) * 4 * numel as u64);
        }
    }
}

/// A decoder as Shoeybi et al. 2019 (Megatron-LM) spread it: heads and inner columns over the ranks, two sums a layer.
struct Decoder {
    layers: usize,
    hidden: usize,
    heads: usize,
    head_dim: usize,
    inner: usize,
}

impl Decoder {
    /// A pass over `tokens` tokens on one rank.
    fn forward(&self, stream: &Stream, comm: &Communicator, tokens: usize) -> Result<()> {
        let n = comm.ranks().count();
        let empty = |dims: &[usize]| stream.empty(&spec(DType::F32, dims));
        let weight = |n: usize, k: usize| -> Result<Weight> { Ok(empty(&[n, k])?.into()) };
        let (heads, inner) = (self.heads / n, self.inner / n);
        let width = heads * self.head_dim;
        let lens = || -> Result<Lens> {
            Lens::new(stream.empty(&spec(DType::I32, &[1]))?, tokens as u32, Some(vec![tokens as u32].into()))
        };
        let x = empty(&[tokens, self.hidden])?;
        for _ in 0..self.layers {
            let y = ops::rms_norm(stream, &x, None, 1e-5)?;
            let qkv = ops::linear(stream, &y, &weight(3 * width, self.hidden)?)?;
            let parts = ops::contiguous(stream, &qkv)?.reshape(&[tokens, 3, heads, self.head_dim])?;
            let head = |at: usize| parts.select(1, at);
            let cache = |at: usize| head(at)?.reshape(&[1, tokens, heads, self.head_dim]);
            let mut attended = empty(&[tokens, heads, self.head_dim])?;
            let (k, v) = (cache(1)?, cache(2)?);
            stream.run(Attention::new(&head(0)?, &k, &v, &lens()?, &lens()?, &mut attended)?)?;
            let out =
                ops::linear(stream, &attended.reshape(&[tokens, width])?, &weight(self.hidden, width)?)?;
            self.add(stream, comm, &x, &out)?;
            let y = ops::rms_norm(stream, &x, None, 1e-5)?;
            let both = ops::linear(stream, &y, &weight(2 * inner, self.hidden)?)?;
            let mut hidden = empty(&[tokens, inner])?;
            stream.run(Swiglu::fused(&both, &mut hidden)?)?;
            let out = ops::linear(stream, &hidden, &weight(self.hidden, inner)?)?;
            self.add(stream, comm, &x, &out)?;
        }
        Ok(())
    }

    /// Sums what the ranks computed, onto the residual stream.
    fn add(&self, stream: &Stream, comm: &Communicator, x: &Tensor, part: &Tensor) -> Result<()> {
        stream.run(AllReduce::sum(comm, part, &mut part.clone())?)?;
        stream.run(Binary::add(x, part, &mut x.clone())?)
    }
}

#[test]
fn a_decoder_spread_over_ranks_sends_two_sums_a_layer_and_shares_its_products_equally() {
    let decoder = Decoder { layers: 3, hidden: 512, heads: 8, head_dim: 64, inner: 1536 };
    let tokens = 37;
    let mut products = Vec::new();
    for n in [1, 2, 4, 8u32] {
        let mut both = [Count::Fused, Count::Composed].map(|count| {
            let (stream, comm) = rank(n - 1, n, count);
            decoder.forward(&stream, &comm, tokens).unwrap();
            stream.report()
        });
        both[1].operators.retain(|row| matches!(row.kind, OpKind::Collective(_)));
        let [fused, composed] = both;
        let row = |kind| *fused.operators.iter().find(|row| row.kind == kind).unwrap();
        let sums = row(OpKind::Collective(portolan_core::CollectiveKind::AllReduce));
        assert_eq!(sums.calls, 2 * 3);
        // 2·(n − 1)/n of the activations, twice a layer (Korthikanti et al. 2022, section 4.2.1).
        let n = u64::from(n);
        let each = 2 * (n - 1) * (tokens * decoder.hidden * 4) as u64 / n;
        assert_eq!(sums.fused.bytes_comm, 2 * 3 * each);
        assert_eq!(fused.fused.bytes_comm, 2 * 3 * each, "nothing else sends");
        let [counted] = composed.operators[..] else { panic!("{composed:?}") };
        assert_eq!(counted.composed.bytes_comm, 2 * 3 * each, "counted through parts");
        products.push(n * row(OpKind::Linear).fused.flops);
        // 2 for each weight and token: 4·d·h·d_h and 3·d·inner weights a layer, an n-th of them here.
        let weights =
            4 * decoder.hidden * decoder.heads * decoder.head_dim + 3 * decoder.hidden * decoder.inner;
        assert_eq!(n * row(OpKind::Linear).fused.flops, (2 * 3 * tokens * weights) as u64);
    }
    assert!(products.iter().all(|all| *all == products[0]), "{products:?}");
}

#[test]
fn experts_spread_over_ranks_send_rooms_and_their_numbers_there_and_rows_back() {
    let (tokens, k, experts, hidden, inner, capacity) = (50, 4, 16, 96, 32, 30);
    for n in [1, 2, 4, 8u32] {
        let (stream, comm) = rank(n - 1, n, Count::Fused);
        let parallel = ExpertParallel::new(&stream, &comm, experts).unwrap();
        let here = parallel.experts().len();
        assert_eq!(here, experts / n as usize);
        let empty = |dtype, dims: &[usize]| stream.empty(&spec(dtype, dims)).unwrap();
        let (x, ids) = (empty(DType::BF16, &[tokens, hidden]), empty(DType::I32, &[tokens, k]));
        let gate_up = Experts::dense(empty(DType::BF16, &[here, 2 * inner, hidden])).unwrap();
        let down = Experts::dense(empty(DType::BF16, &[here, hidden, inner])).unwrap();
        let sent = parallel.dispatch(&stream, &x, &ids, capacity).unwrap();
        let y = parallel.expert_ffn(&stream, &sent, &gate_up, &down).unwrap();
        let weights = empty(DType::F32, &[tokens, k]);
        let out = parallel.combine(&stream, &sent, &y, &weights).unwrap();
        assert_eq!((out.dims(), out.dtype()), (&[tokens, hidden][..], DType::BF16));
        // A room for each other rank: its rows in bf16 and their experts in i32 go, rows in bf16 come back.
        let rows = u64::from(n - 1) * capacity as u64;
        assert_eq!(stream.report().fused.bytes_comm, rows * (2 * hidden as u64 + 4 + 2 * hidden as u64));
        let counts = parallel.dispatch_counts(&stream, &ids).map(|_| ()).unwrap_err();
        assert!(matches!(counts, OpError::Unsupported { reason: Unsupported::NoData, .. }), "{counts}");
    }
}

#[test]
fn a_group_without_peers_is_joined_at_once_and_not_split() {
    let (stream, comm) = rank(5, 1 << 20, Count::Fused);
    assert_eq!((comm.rank(), comm.world_size()), (5, 1 << 20));
    match comm.split(Some(0), 0).map(|_| ()) {
        Err(OpError::Unsupported { reason: Unsupported::NoData, hint, .. }) => {
            assert!(hint.contains("join a group"), "{hint}");
        }
        other => panic!("{other:?}"),
    }
    stream.run(Barrier::new(&comm).unwrap()).unwrap();
    comm.abort("was told to");
    let error = Barrier::new(&comm).and_then(|barrier| stream.run(barrier)).unwrap_err();
    match error {
        OpError::Collective { op, seq, rank, what, .. } => {
            assert_eq!((op.as_ref(), seq, rank, what.as_str()), ("barrier", 1, 5, "was told to"));
        }
        other => panic!("{other}"),
    }
    let backend = MetaBackend::new(MetaOptions::default());
    assert_ne!(backend.new_id().unwrap(), backend.new_id().unwrap());
    let outside = Communicator::join(
        &stream,
        &CommConfig {
            id: backend.new_id().unwrap(),
            rank: 2,
            world_size: 2,
            timeout: Duration::ZERO,
            determinism: Determinism::Fast,
        },
    );
    assert!(matches!(outside.map(|_| ()), Err(OpError::Attribute { .. })));
    assert_eq!(stream.report().fused, Cost::default());
}
