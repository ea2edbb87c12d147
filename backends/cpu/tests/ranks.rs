//! Groups of ranks under ten thousand random schedules; what is promised of groups otherwise is in conformance.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_core::call::{AllGather, AllReduce, AllToAll, ReduceScatter};
use portolan_core::{Backend, Collectives, CommConfig, Communicator, Registry, StreamOptions};
use portolan_cpu::{CpuBackend, CpuOptions, Executor};
use portolan_ops::comm::ReduceOp;
use portolan_ops::{DType, Determinism, TensorSpec};
use std::sync::Arc;
use std::time::Duration;

const WORLD: usize = 3;
const LEN: usize = 12;
const PART: usize = LEN / WORLD;
/// Rounds of one seed: one schedule each, as every entry of every stream is delayed by a draw of its own.
const ROUNDS: usize = 500;
const SEEDS: u64 = 20;

/// Numbers whose sum depends on the order it is formed in.
fn given(rank: usize) -> Vec<f32> {
    (0..LEN).map(|i| ((rank * 31 + i * 7) % 17) as f32 * [1e-4, 3.0, 5e4][(rank + i) % 3] - 0.37).collect()
}

/// Which operator a round runs: the same on all ranks.
fn kind(seed: u64, round: usize) -> u64 {
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (round as u64).wrapping_mul(0xd1b5_4a32_d192_ed03)) >> 62
}

/// What a round leaves on a rank, by plain loops; sums in rank order, in f32.
fn expected(kind: u64, rank: usize) -> Vec<f32> {
    let all: Vec<Vec<f32>> = (0..WORLD).map(given).collect();
    let sum = |i: usize| all.iter().skip(1).fold(all[0][i], |sum, x| sum + x[i]);
    match kind {
        0 => (0..LEN).map(sum).collect(),
        1 => (0..PART).map(|i| sum(rank * PART + i)).collect(),
        2 => all.iter().flat_map(|x| x[..PART].to_vec()).collect(),
        _ => all.iter().flat_map(|x| x[rank * PART..][..PART].to_vec()).collect(),
    }
}

#[test]
fn ten_thousand_random_schedules_give_the_bits_of_rank_order() {
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    // Another order has other bits, or the test would prove nothing.
    let all: Vec<Vec<f32>> = (0..WORLD).map(given).collect();
    let backwards: Vec<f32> = (0..LEN).map(|i| all[2][i] + all[1][i] + all[0][i]).collect();
    assert_ne!(bits(&backwards), bits(&expected(0, 0)));

    for seed in 0..SEEDS {
        let options = CpuOptions {
            executor: Executor::Chaotic { seed },
            threads: Some(1),
            memory_limit: Some(1 << 28),
            ..CpuOptions::default()
        };
        let backend: Arc<dyn Backend> = CpuBackend::new(options).unwrap();
        let id = Collectives::new_id(backend.as_ref()).unwrap();
        std::thread::scope(|scope| {
            for rank in 0..WORLD {
                let backend = backend.clone();
                scope.spawn(move || {
                    let device = Registry::new().with(backend).open("cpu:0").unwrap();
                    let stream = device.stream(StreamOptions::default()).unwrap();
                    let config = CommConfig {
                        id,
                        rank: rank as u32,
                        world_size: WORLD as u32,
                        timeout: Duration::from_secs(60),
                        determinism: Determinism::RunToRun,
                    };
                    let comm = Communicator::join(&stream, &config).unwrap();
                    let x = rig::up(&stream, &given(rank));
                    let outs = stream.empty(&TensorSpec::of(DType::F32, &[ROUNDS, LEN]).unwrap()).unwrap();
                    for round in 0..ROUNDS {
                        let mut out = outs.select(0, round).unwrap();
                        let ran = match kind(seed, round) {
                            0 => stream.run(AllReduce::sum(&comm, &x, &mut out).unwrap()),
                            1 => {
                                let mut part = out.narrow(0, 0, PART).unwrap();
                                stream.run(ReduceScatter::new(&comm, ReduceOp::Sum, &x, &mut part).unwrap())
                            }
                            2 => {
                                let part = x.narrow(0, 0, PART).unwrap();
                                stream.run(AllGather::new(&comm, &part, &mut out).unwrap())
                            }
                            _ => stream.run(AllToAll::new(&comm, &x, &mut out).unwrap()),
                        };
                        ran.unwrap();
                    }
                    let got = rig::down(&stream, &outs);
                    for round in 0..ROUNDS {
                        let want = expected(kind(seed, round), rank);
                        let got = &got[round * LEN..][..want.len()];
                        assert_eq!(bits(got), bits(&want), "seed {seed}, round {round}, rank {rank}");
                    }
                });
            }
        });
    }
}
