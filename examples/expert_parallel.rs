//! A layer of experts spread over ranks, each of which is a thread with a device of its own here: tokens go to the ranks of
//! their experts and come back, and the result is that of all experts on one device.
//!
//! `cargo run --release --example expert_parallel`

use portolan::cpu::{CpuBackend, CpuOptions};
use portolan::{
    Backend, CommConfig, CommId, Communicator, Determinism, ExpertParallel, Experts, OpError, Registry,
    Shape, Stream, StreamOptions, Tensor, ops,
};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

const RANKS: u32 = 4;
const EXPERTS: usize = 8;
const TOKENS: usize = 6;
const HIDDEN: usize = 16;
const INNER: usize = 24;

/// Numbers in [−1, 1) that are the same wherever they are made.
fn numbers(stream: &Stream, dims: &[usize], seed: usize) -> Result<Tensor, OpError> {
    let value = |i: usize| ((i + 1) * (2 * seed + 7919) % 1009) as f32 / 504.5 - 1.0;
    let values: Vec<f32> = (0..dims.iter().product()).map(value).collect();
    stream.upload(&values, &Shape::new(dims)?)
}

/// The networks of some of the experts: gate and up in one, and down.
fn experts(stream: &Stream, of: Range<usize>) -> Result<[Experts; 2], OpError> {
    let stack = |rows: usize, columns: usize, seed: usize| -> Result<Experts, OpError> {
        let all = numbers(stream, &[EXPERTS, rows, columns], seed)?;
        Experts::dense(ops::contiguous(stream, &all.narrow(0, of.start, of.len())?)?)
    };
    Ok([stack(2 * INNER, HIDDEN, 1)?, stack(HIDDEN, INNER, 2)?])
}

/// What one rank does for its own tokens; the largest difference from doing it alone, and the rows that found no room.
fn layer(backend: Arc<dyn Backend>, id: CommId, rank: u32, capacity: usize) -> Result<(f32, i32), OpError> {
    // Ranks of one process meet in one backend, and open a device each.
    let stream = Registry::new().with(backend).open("cpu:0")?.stream(StreamOptions::default())?;
    let (timeout, determinism) = (Duration::from_secs(10), Determinism::RunToRun);
    let config = CommConfig { id, rank, world_size: RANKS, timeout, determinism };
    let comm = Communicator::join(&stream, &config)?;
    let parallel = ExpertParallel::new(&stream, &comm, EXPERTS)?;

    let x = numbers(&stream, &[TOKENS, HIDDEN], 10 + rank as usize)?;
    let ids: Vec<i32> = (0..2 * TOKENS).map(|i| ((3 * i + i / 2 + rank as usize) % EXPERTS) as i32).collect();
    let ids = stream.upload(&ids, &Shape::new(&[TOKENS, 2])?)?;
    let weights = ops::full(&stream, x.dtype(), ids.shape(), 0.5)?;

    // The experts of this rank only.
    let [gate_up, down] = experts(&stream, parallel.experts())?;
    let sent = parallel.dispatch(&stream, &x, &ids, capacity)?;
    let y = parallel.expert_ffn(&stream, &sent, &gate_up, &down)?;
    let out = parallel.combine(&stream, &sent, &y, &weights)?;
    // The three steps in one operator, which has room for everything.
    let whole = parallel.whole(&stream, TOKENS, (&x, &ids, &weights), &gate_up, &down)?;

    let [gate_up, down] = experts(&stream, 0..EXPERTS)?;
    let alone = ops::expert_ffn(&stream, &x, &ids, &weights, &gate_up, &down)?;
    let down = |x| stream.download::<f32>(x)?.wait();
    let (out, whole, alone) = (down(&out)?, down(&whole)?, down(&alone)?);
    let apart = |out: &[f32]| out.iter().zip(&alone).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    if apart(&whole) > 1e-5 {
        return Err(OpError::internal("example", "one operator gives something else than one device"));
    }
    let difference = apart(&out);
    let dropped = match sent.dropped() {
        Some(dropped) => stream.download::<i32>(dropped)?.wait()?.iter().sum(),
        None => 0,
    };
    Ok((difference, dropped))
}

fn main() -> Result<(), OpError> {
    let backend: Arc<dyn Backend> = CpuBackend::new(CpuOptions::default())?;
    for capacity in [2 * TOKENS, 2] {
        let id = backend.new_id()?;
        let backend = &backend;
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..RANKS)
                .map(|rank| scope.spawn(move || layer(backend.clone(), id, rank, capacity)))
                .collect();
            ranks
                .into_iter()
                .map(|rank| rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        for (rank, outcome) in outcomes.into_iter().enumerate() {
            let (difference, dropped) = outcome?;
            println!(
                "room for {capacity:2}, rank {rank}: {dropped} rows dropped, {difference:.1e} from one device"
            );
        }
    }
    Ok(())
}
