//! Models shared out among ranks answer as on one: the same code, with a share of the heads, inner columns and experts.
#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan::cpu::{CpuBackend, CpuOptions, Executor};
use portolan::load::{self, WeightSource};
use portolan::models::{self, LanguageModel};
use portolan::nn::{Layout, Precision};
use portolan::{
    Backend, CommConfig, Communicator, Determinism, Error, ErrorKind, Registry, Stream, StreamOptions,
};
use std::sync::Arc;
use std::time::Duration;

/// Runs `body` on a thread for each rank, with a stream and a share of its own.
fn on_ranks<T: Send>(world_size: u32, body: impl Fn(&Stream, &Layout) -> T + Sync) -> Vec<T> {
    let options = CpuOptions { executor: Executor::Queued, threads: Some(1), ..CpuOptions::default() };
    let backend: Arc<dyn Backend> = CpuBackend::new(options).unwrap();
    let id = backend.new_id().unwrap();
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                let (backend, body) = (backend.clone(), &body);
                scope.spawn(move || {
                    let device = Registry::new().with(backend).open("cpu:0").unwrap();
                    let stream = device.stream(StreamOptions::default()).unwrap();
                    let (timeout, determinism) = (Duration::from_secs(50), Determinism::RunToRun);
                    let config = CommConfig { id, rank, world_size, timeout, determinism };
                    let layout = Layout::of_rank(&Communicator::join(&stream, &config).unwrap());
                    body(&stream, &layout)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn share(
    stream: &Stream,
    layout: &Layout,
    source: &dyn WeightSource,
) -> Result<Box<dyn LanguageModel>, Error> {
    models::load_rank(stream, source, Precision::Exact, layout, &mut |_, _| {})
}

#[test]
fn two_and_four_ranks_answer_as_one() {
    // Heads with keys of their own and in groups, biases and windows, experts that four ranks have unequally many of, a shared
    // one with a router of its own, layers without any, latent entries; channels, and heads in groups that a rank has several
    // or a part of.
    for name in [
        "llama-mha",
        "llama-gqa",
        "mistral-window",
        "qwen2-bias",
        "mixtral",
        "qwen2-moe",
        "qwen3-moe",
        "deepseek-v3",
        "deepseek-v3-plain",
        "mamba",
        "mamba-bias",
        "mamba2",
        "mamba2-bias",
    ] {
        let source = load::open(&rig::folder(name)).unwrap();
        let (sequences, golden) = &rig::goldens(name)[1];
        for step in [64, 5] {
            let stream = rig::stream();
            let one = share(&stream, &Layout::default(), source.as_ref()).unwrap();
            let want = rig::logits(&stream, one.as_ref(), sequences, step);
            for world in [1, 2, 4] {
                let all = on_ranks(world, |stream, layout| {
                    let model = share(stream, layout, source.as_ref()).unwrap();
                    rig::logits(stream, model.as_ref(), sequences, step)
                });
                for (rank, got) in all.iter().enumerate() {
                    let (near, golden) = (rig::distance(got, &want), rig::distance(got, golden));
                    assert!(
                        near <= 1e-5 && golden <= 1e-4,
                        "{name}, {rank} of {world}: {near:e}, {golden:e}"
                    );
                    assert_eq!(got, &all[0], "{name}: ranks of {world} differ");
                }
            }
        }
    }
}

#[test]
fn a_model_that_ranks_cannot_share_is_refused_on_each_of_them() {
    for (name, world, says) in [
        ("llama-gqa", 3, "are 3, which cannot share 4 heads equally"),
        ("qwen2-moe", 8, "are 8, which cannot share 4 heads equally"),
        ("mamba", 3, "are 3, which cannot share 64 channels equally"),
        ("mamba2", 3, "are 3, which cannot share 8 heads equally"),
    ] {
        let source = load::open(&rig::folder(name)).unwrap();
        for error in on_ranks(world, |stream, layout| share(stream, layout, source.as_ref()).map(|_| ())) {
            let error = error.unwrap_err();
            assert!(error.to_string().contains(says), "{name}: {error}");
            let Error::Op(error) = error else { panic!("{error}") };
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        }
    }
}

#[test]
fn blocks_that_would_be_cut_are_refused_on_each_rank() {
    // 160 inner columns are five blocks of 32.
    let source = models::embedded().unwrap();
    for error in on_ranks(2, |stream, layout| share(stream, layout, &source).map(|_| ())) {
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("ffn_down") && error.contains("blocks of 32 columns cannot be cut at 80"),
            "{error}"
        );
    }
}
