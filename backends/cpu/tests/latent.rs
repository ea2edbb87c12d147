//! Latent attention as a model runs it: an index scores keys, the best are selected, and only they are attended to.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_core::call::{Compare, IndexLogits, MergeAttention, MlaDecode, Select, SparseAttention, TopK};
use portolan_core::{Lens, Registry, Stream, StreamOptions, Tensor};
use portolan_cpu::{CpuBackend, CpuOptions};
use portolan_ops::kernel::CompareKind;
use portolan_ops::{DType, Fill, Shape, TensorSpec};

const Q_LENS: [u32; 2] = [3, 1];
const KV_LENS: [u32; 2] = [40, 9];
const TOKENS: usize = 4;
const HEADS: usize = 20;
const WIDTH: usize = 36;
const RANK: usize = 32;
const SCALE: f32 = 0.3;

fn stream() -> Stream {
    let backend = CpuBackend::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    let device = Registry::new().with(backend).open("cpu:0").unwrap();
    device.stream(StreamOptions::default()).unwrap()
}

fn noise(s: &Stream, dims: &[usize], seed: u64) -> Tensor {
    let spec = TensorSpec::of(DType::F32, dims).unwrap();
    let values: Vec<f32> = Fill::Unit.draw(&spec, seed).into_iter().map(|x| x as f32).collect();
    s.upload(&values, spec.shape()).unwrap()
}

fn empty(s: &Stream, dtype: DType, dims: &[usize]) -> Tensor {
    s.empty(&TensorSpec::of(dtype, dims).unwrap()).unwrap()
}

fn floats(s: &Stream, x: &Tensor) -> Vec<f32> {
    s.download::<f32>(x).unwrap().wait().unwrap()
}

fn assert_close(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() < 2e-5, "{i}: {got} {want}");
    }
}

/// The positions of the `top_k` best keys of each token, −1 behind those it sees.
fn select(s: &Stream, q_lens: &Lens, kv_lens: &Lens, top_k: usize) -> Tensor {
    let (q, k) = (noise(s, &[TOKENS, 8, 16], 4), noise(s, &[2, 48, 16], 5));
    let weights = noise(s, &[TOKENS, 8], 6);
    let mut logits = empty(s, DType::F32, &[TOKENS, 48]);
    s.run(IndexLogits::new(&q, &k, &weights, [q_lens, kv_lens], 1, &mut logits).unwrap()).unwrap();
    let mut values = empty(s, DType::F32, &[TOKENS, top_k]);
    let mut indices = empty(s, DType::I32, &[TOKENS, top_k]);
    s.run(TopK::new(&logits, &mut values, &mut indices).unwrap()).unwrap();
    let mut seen = empty(s, DType::Bool, &[TOKENS, top_k]);
    s.run(Compare::scalar(CompareKind::Ne, &values, f64::NEG_INFINITY, &mut seen).unwrap()).unwrap();
    let padding = s.upload(&[-1i32], &Shape::new(&[1]).unwrap()).unwrap();
    s.run(Select::new(&seen, &indices, &padding, &mut indices.clone()).unwrap()).unwrap();
    indices
}

#[test]
fn selecting_every_key_is_dense_latent_attention() {
    let s = stream();
    let (q, cache) = (noise(&s, &[TOKENS, HEADS, WIDTH], 1), noise(&s, &[2, 48, WIDTH], 2));
    let sinks = noise(&s, &[HEADS], 3);
    let q_lens = Lens::upload(&s, &Q_LENS, 3).unwrap();
    let kv_lens = Lens::upload(&s, &KV_LENS, 48).unwrap();
    let mut dense = empty(&s, DType::F32, &[TOKENS, HEADS, RANK]);
    let op = MlaDecode::new(&q, &cache, &q_lens, &kv_lens, SCALE, &mut dense).unwrap();
    s.run(op.sinks(&sinks).unwrap()).unwrap();
    let indices = select(&s, &q_lens, &kv_lens, 48);
    let mut sparse = empty(&s, DType::F32, &[TOKENS, HEADS, RANK]);
    let op = SparseAttention::new(&q, &cache, &indices, &q_lens, SCALE, &mut sparse).unwrap();
    s.run(op.sinks(&sinks).unwrap()).unwrap();
    assert_close(&floats(&s, &sparse), &floats(&s, &dense));
    // Few keys are a different answer: the comparison above is one of something.
    let indices = select(&s, &q_lens, &kv_lens, 4);
    let op = SparseAttention::new(&q, &cache, &indices, &q_lens, SCALE, &mut sparse).unwrap();
    s.run(op).unwrap();
    assert!(floats(&s, &sparse) != floats(&s, &dense));
}

#[test]
fn two_lists_with_the_sink_in_one_merge_to_the_whole_list() {
    let s = stream();
    let (q, cache) = (noise(&s, &[TOKENS, HEADS, WIDTH], 1), noise(&s, &[2, 48, WIDTH], 2));
    let sinks = noise(&s, &[HEADS], 3);
    let q_lens = Lens::upload(&s, &Q_LENS, 3).unwrap();
    let listed: Vec<i32> =
        (0..TOKENS * 30).map(|i| if i % 7 == 2 { -1 } else { (i * 11 % 48) as i32 }).collect();
    let indices = s.upload(&listed, &Shape::new(&[TOKENS, 30]).unwrap()).unwrap();
    let mut whole = empty(&s, DType::F32, &[TOKENS, HEADS, RANK]);
    let mut whole_lse = empty(&s, DType::F32, &[TOKENS, HEADS]);
    let op = SparseAttention::new(&q, &cache, &indices, &q_lens, SCALE, &mut whole).unwrap();
    s.run(op.sinks(&sinks).unwrap().lse(&mut whole_lse).unwrap()).unwrap();

    let parts = empty(&s, DType::F32, &[2, TOKENS, HEADS, RANK]);
    let lses = empty(&s, DType::F32, &[2, TOKENS, HEADS]);
    for (part, (from, len)) in [(0, 13), (13, 17)].into_iter().enumerate() {
        let list = indices.narrow(1, from, len).unwrap();
        let (mut out, mut lse) = (parts.select(0, part).unwrap(), lses.select(0, part).unwrap());
        let op = SparseAttention::new(&q, &cache, &list, &q_lens, SCALE, &mut out).unwrap();
        let op = if part == 0 { op.sinks(&sinks).unwrap() } else { op };
        s.run(op.lse(&mut lse).unwrap()).unwrap();
    }
    let mut merged = empty(&s, DType::F32, &[TOKENS, HEADS, RANK]);
    let mut lse = empty(&s, DType::F32, &[TOKENS, HEADS]);
    s.run(MergeAttention::new(&parts, &lses, &mut merged).unwrap().lse(&mut lse).unwrap()).unwrap();
    assert_close(&floats(&s, &merged), &floats(&s, &whole));
    assert_close(&floats(&s, &lse), &floats(&s, &whole_lse));
    assert_eq!(s.report().compositions_total(), 0);
}
