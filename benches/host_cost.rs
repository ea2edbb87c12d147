//! What enqueuing one operator costs the calling thread, while the queue's own thread is busy.
//!
//! A long product is enqueued first and work piles up behind it, so the mean holds no waiting. Kernels are
//! timed in `kernels.rs`.

use criterion::{Criterion, SamplingMode, criterion_group, criterion_main};
use portolan::call::{Binary, Gemm};
use portolan::cpu::{CpuBackend, CpuOptions, Executor};
use portolan::{DType, OpError, Registry, Shape, Stream, StreamOptions, TensorSpec};
use std::time::{Duration, Instant};

/// Operators in one measurement.
const RUNS: u32 = 100_000;
/// Mean host time of one operator that the design promises.
const GOAL: Duration = Duration::from_micros(2);

/// Times [`RUNS`] operators.
type Way = fn(&Setup) -> Result<Duration, OpError>;

struct Setup {
    stream: Stream,
    product: Gemm,
    add: Binary,
}

impl Setup {
    fn new() -> Result<Self, OpError> {
        // One thread computes, so that the thread that enqueues has a core of its own on two.
        let options = CpuOptions { threads: Some(1), executor: Executor::Queued, ..CpuOptions::default() };
        let device = Registry::new().with(CpuBackend::new(options)?).open("cpu:0")?;
        let stream = device.stream(StreamOptions::default())?;
        let zeros = |n: usize| stream.upload(&vec![0.0f32; n * n], &Shape::new(&[n, n])?);
        let empty = |n: usize| stream.empty(&TensorSpec::of(DType::F32, &[n, n])?);
        let product = Gemm::nn(&zeros(2048)?, &zeros(2048)?, &mut empty(2048)?)?;
        let add = Binary::add(&zeros(16)?, &zeros(16)?, &mut empty(16)?)?;
        Ok(Self { stream, product, add })
    }

    /// Host time of [`RUNS`] operators that exist, without waiting for them.
    fn enqueue(&self) -> Result<Duration, OpError> {
        self.stream.run(self.product.clone())?;
        let start = Instant::now();
        for _ in 0..RUNS {
            self.stream.run(self.add.clone())?;
        }
        let took = start.elapsed();
        self.stream.synchronize()?;
        Ok(took)
    }

    /// The same with every operator made, and so checked, anew.
    fn bind_and_enqueue(&self) -> Result<Duration, OpError> {
        let [a, b, mut out] = [self.add.require("a")?, self.add.require("b")?, self.add.require("out")?];
        self.stream.run(self.product.clone())?;
        let start = Instant::now();
        for _ in 0..RUNS {
            self.stream.run(Binary::add(&a, &b, &mut out)?)?;
        }
        let took = start.elapsed();
        self.stream.synchronize()?;
        Ok(took)
    }
}

fn host_cost(c: &mut Criterion) {
    let setup = Setup::new().unwrap_or_else(|error| panic!("{error}"));
    let ways: [(&str, Way); 2] = [("enqueue", Setup::enqueue), ("bind_and_enqueue", Setup::bind_and_enqueue)];
    let mut group = c.benchmark_group("host_cost");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    for (id, way) in ways {
        let mut means: Vec<Duration> = Vec::new();
        group.bench_function(id, |bencher| {
            bencher.iter_custom(|runs| {
                let took = way(&setup).unwrap_or_else(|error| panic!("{id}: {error}"));
                means.push(took / RUNS);
                // Criterion asks for so many runs; a measurement always has RUNS of them.
                took.mul_f64(runs as f64 / f64::from(RUNS))
            });
        });
        means.sort();
        if let Some(median) = means.get(means.len() / 2) {
            let verdict = if *median <= GOAL { "PASS" } else { "ABOVE" };
            println!(
                "{id}: {:.2} µs an operator, mean of {RUNS} (median of {}); goal {} µs: {verdict}",
                median.as_secs_f64() * 1e6,
                means.len(),
                GOAL.as_micros()
            );
        }
    }
}

criterion_group!(benches, host_cost);
criterion_main!(benches);
