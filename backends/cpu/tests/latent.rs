//! Latent attention as a model runs it: an index scores keys, the best are selected, and only they are attended to;
//! and absorbed into the latent space or with keys and values of every head.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_core::call::{
    Attention, Compare, Copy, Gemm, IndexLogits, MergeAttention, MlaDecode, Select, SparseAttention, TopK,
};
use portolan_core::{Lens, Registry, Stream, StreamOptions, Tensor};
use portolan_cpu::{CpuBackend, CpuOptions};
use portolan_ops::attention::{AttentionSpec, LensSpec};
use portolan_ops::kernel::CompareKind;
use portolan_ops::{Contract, DType, Fill, Shape, TensorSpec};

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

/// A latent layer's parts: rank 32 and a rotary part of 4 for all heads, 12 elements of a key and 10 of a value
/// besides for each.
const HEADS_OF_LAYER: usize = 6;
const NOPE: usize = 12;
const VALUE: usize = 10;

/// `Σ_r rows[.., r] · weight[h, .., r]` for every head, in f64.
fn raise(entries: &[f64], weight: &[f64], width: usize) -> Vec<f64> {
    let mut out = Vec::new();
    for entry in entries.chunks(WIDTH) {
        for head in weight.chunks(width * RANK) {
            out.extend(head.chunks(RANK).map(|row| row.iter().zip(entry).map(|(a, b)| a * b).sum::<f64>()));
        }
    }
    out
}

/// The oracle: keys and values of every head, made from the latent entries, then the oracle of attention.
fn naive_in_f64(q: &[f64], cache: &[f64], weights: [&[f64]; 2], lens: [&[u32]; 2]) -> Vec<f64> {
    let [tokens, batch] = [q.len() / HEADS_OF_LAYER / (NOPE + WIDTH - RANK), lens[0].len()];
    let max_len = cache.len() / WIDTH / batch;
    let (nope, values) = (raise(cache, weights[0], NOPE), raise(cache, weights[1], VALUE));
    let keys: Vec<f64> = nope
        .chunks(NOPE)
        .enumerate()
        .flat_map(|(i, nope)| {
            let entry = &cache[i / HEADS_OF_LAYER * WIDTH..][..WIDTH];
            [nope, &entry[RANK..]].concat()
        })
        .collect();
    let spec = |dims: &[usize]| TensorSpec::of(DType::F32, dims).unwrap();
    let length = TensorSpec::of(DType::I32, &[batch]).unwrap();
    let [q_lens, kv_lens] = lens.map(|lens| {
        LensSpec::new("attention", "lens", &length, lens.iter().copied().max().unwrap()).unwrap()
    });
    let [k_width, heads] = [NOPE + WIDTH - RANK, HEADS_OF_LAYER];
    let naive = AttentionSpec::new(
        &spec(&[tokens, heads, k_width]),
        &spec(&[batch, max_len, heads, k_width]),
        &spec(&[batch, max_len, heads, VALUE]),
        &q_lens,
        &kv_lens,
        &spec(&[tokens, heads, VALUE]),
    )
    .unwrap()
    .with_scale(SCALE)
    .unwrap();
    let [q_lens, kv_lens] = lens.map(|lens| lens.iter().map(|&len| f64::from(len)).collect::<Vec<_>>());
    naive.reference(&[q, &keys, &values, &q_lens, &kv_lens]).remove(0)
}

#[test]
fn naive_and_absorbed_latent_attention_are_one_function() {
    let s = stream();
    let (heads, rope) = (HEADS_OF_LAYER, WIDTH - RANK);
    let prefill: [&[u32]; 2] = [&[40, 9], &[40, 9]];
    let (chunk, decode): ([&[u32]; 2], [&[u32]; 2]) = ([&[5, 2], &[33, 61]], [&[1, 1], &[61, 7]]);
    for (name, lens) in [("prefill", prefill), ("chunk", chunk), ("decode", decode)] {
        let (tokens, max_len) = (lens[0].iter().sum::<u32>() as usize, 64);
        let q = noise(&s, &[tokens, heads, NOPE + rope], 1);
        let cache = noise(&s, &[2, max_len, WIDTH], 2);
        let (w_uk, w_uv) = (noise(&s, &[heads, NOPE, RANK], 3), noise(&s, &[heads, VALUE, RANK], 4));
        let [q_lens, kv_lens] =
            lens.map(|lens| Lens::upload(&s, lens, lens.iter().copied().max().unwrap()).unwrap());
        let wide = |x: &Tensor| floats(&s, x).into_iter().map(f64::from).collect::<Vec<_>>();
        let want = naive_in_f64(&wide(&q), &wide(&cache), [&wide(&w_uk), &wide(&w_uv)], lens);
        let want: Vec<f32> = want.into_iter().map(|x| x as f32).collect();

        // Naive: keys and values of every head.
        let entries = cache.reshape(&[1, 2 * max_len, WIDTH]).unwrap();
        let latent = entries.narrow(2, 0, RANK).unwrap().broadcast_to(&[heads, 2 * max_len, RANK]).unwrap();
        let keys = empty(&s, DType::F32, &[2 * max_len, heads, NOPE + rope]);
        let values = empty(&s, DType::F32, &[2 * max_len, heads, VALUE]);
        let mut nope = keys.narrow(2, 0, NOPE).unwrap().transpose(0, 1).unwrap();
        s.run(Gemm::nt(&latent, &w_uk, &mut nope).unwrap()).unwrap();
        s.run(Gemm::nt(&latent, &w_uv, &mut values.transpose(0, 1).unwrap()).unwrap()).unwrap();
        let rotary = entries.narrow(2, RANK, rope).unwrap().transpose(0, 1).unwrap();
        let rotary = rotary.broadcast_to(&[2 * max_len, heads, rope]).unwrap();
        s.run(Copy::new(&rotary, &mut keys.narrow(2, NOPE, rope).unwrap()).unwrap()).unwrap();
        let mut naive = empty(&s, DType::F32, &[tokens, heads, VALUE]);
        let k = keys.reshape(&[2, max_len, heads, NOPE + rope]).unwrap();
        let v = values.reshape(&[2, max_len, heads, VALUE]).unwrap();
        let op = Attention::new(&q, &k, &v, &q_lens, &kv_lens, &mut naive).unwrap();
        s.run(op.scale(SCALE).unwrap()).unwrap();

        // Absorbed: queries taken into the latent space, results brought out of it.
        let absorbed_q = empty(&s, DType::F32, &[tokens, heads, WIDTH]);
        let nope = q.narrow(2, 0, NOPE).unwrap().transpose(0, 1).unwrap();
        let mut into = absorbed_q.narrow(2, 0, RANK).unwrap().transpose(0, 1).unwrap();
        s.run(Gemm::nn(&nope, &w_uk, &mut into).unwrap()).unwrap();
        let rotary = q.narrow(2, NOPE, rope).unwrap();
        s.run(Copy::new(&rotary, &mut absorbed_q.narrow(2, RANK, rope).unwrap()).unwrap()).unwrap();
        let mut latent = empty(&s, DType::F32, &[tokens, heads, RANK]);
        s.run(MlaDecode::new(&absorbed_q, &cache, &q_lens, &kv_lens, SCALE, &mut latent).unwrap()).unwrap();
        let absorbed = empty(&s, DType::F32, &[tokens, heads, VALUE]);
        let mut out = absorbed.transpose(0, 1).unwrap();
        s.run(Gemm::nt(&latent.transpose(0, 1).unwrap(), &w_uv, &mut out).unwrap()).unwrap();

        let (naive, absorbed) = (floats(&s, &naive), floats(&s, &absorbed));
        println!("{name}");
        assert_close(&naive, &want);
        assert_close(&absorbed, &want);
        assert_close(&absorbed, &naive);
        assert!(want.iter().any(|x| x.abs() > 0.1), "a comparison of something");
    }
    assert_eq!(s.report().compositions_total(), 0);
}
