//! What compositions promise beyond the operators' cases: memory nobody may read, faults in the data, results
//! in place, capture, and streams that deny compositions.
#![allow(clippy::unwrap_used, missing_docs)]

use portolan_conformance::{ReferenceBackend, Subject, check_case};
use portolan_core::call::{KvCacheWrite, RmsNorm, Rope, Softmax, Swiglu};
use portolan_core::{Fallback, Lens, Op, Registry, Stream, StreamOptions, Tensor};
use portolan_ops::attention::{AttentionMask, AttentionSpec, LensSpec, PagedAttentionSpec};
use portolan_ops::rope::RopeStyle;
use portolan_ops::{Case, DType, ErrorKind, Fill, OpError, Result, Shape, TensorSpec, Unsupported};

fn stream(fallback: Fallback) -> Stream {
    let device = Registry::new().with(ReferenceBackend::new()).open("reference:0").unwrap();
    device.stream(StreamOptions { fallback, ..StreamOptions::default() }).unwrap()
}

fn f32s(dims: &[usize]) -> TensorSpec {
    TensorSpec::of(DType::F32, dims).unwrap()
}

fn lens(op: &'static str, count: usize, max: u32) -> LensSpec {
    LensSpec::new(op, "lens", &TensorSpec::of(DType::I32, &[count]).unwrap(), max).unwrap()
}

fn numbers(stream: &Stream, dims: &[usize]) -> Tensor {
    let shape = Shape::new(dims).unwrap();
    let values: Vec<f32> = (0..shape.numel()).map(|i| ((i * 37 % 101) as f32 - 50.0) / 32.0).collect();
    stream.upload(&values, &shape).unwrap()
}

#[test]
fn keys_that_no_query_sees_may_hold_anything() {
    // Two sequences of 2 tokens at the end of 3 and 6 keys, in a cache of 8; heads of 2.
    let (q, cache) = (f32s(&[4, 1, 2]), f32s(&[2, 8, 1, 2]));
    for mask in [AttentionMask::Causal, AttentionMask::Full, AttentionMask::Window(2)] {
        let (q_lens, kv_lens) = (lens("attention", 2, 2), lens("attention", 2, 6));
        let spec = AttentionSpec::new(&q, &cache, &cache, &q_lens, &kv_lens, &q).unwrap();
        let seen = |b: usize, key: usize| mask.visible_to_any(2, [3, 6][b]).contains(&key);
        let fill = Fill::Values(
            (0..32)
                .map(|i| if seen(i / 16, i / 2 % 8) { f64::from(i as u8) / 16.0 - 1.0 } else { f64::NAN })
                .collect(),
        );
        let case = Case::new(format!("unread/{mask:?}"), spec.with_mask(mask).unwrap())
            .fill("q_lens", Fill::Values(vec![2.0, 2.0]))
            .fill("kv_lens", Fill::Values(vec![3.0, 6.0]))
            .fill("k", fill.clone())
            .fill("v", fill);
        check_case(&Subject { stream: &stream(Fallback::Allow), slack: 1.0 }, &case).unwrap();
    }
}

/// One token at the end of 9 keys in pages of 4, of which `table` names the pages.
fn paged(table: [f64; 3], mask: AttentionMask) -> Case<PagedAttentionSpec> {
    let (q, cache) = (f32s(&[1, 2, 4]), f32s(&[3, 4, 1, 4]));
    let op = "paged_attention";
    let block_table = TensorSpec::of(DType::I32, &[1, 3]).unwrap();
    let (q_lens, kv_lens) = (lens(op, 1, 1), lens(op, 1, 9));
    let spec = PagedAttentionSpec::new(&q, &cache, &cache, &block_table, &q_lens, &kv_lens, &q).unwrap();
    Case::new(format!("{mask:?}"), spec.with_mask(mask).unwrap())
        .fill("block_table", Fill::Values(table.to_vec()))
        .fill("q_lens", Fill::Values(vec![1.0]))
        .fill("kv_lens", Fill::Values(vec![9.0]))
}

#[test]
fn pages_before_the_window_may_be_absent_and_pages_within_it_may_not() {
    let run = |case| check_case(&Subject { stream: &stream(Fallback::Allow), slack: 1.0 }, &case);
    run(paged([-1.0, 2.0, 0.0], AttentionMask::Window(5))).unwrap();
    // Key 4 is the last of the second page that a window of 6 reaches past: key 3 lies in the first.
    let failure = run(paged([-1.0, 2.0, 0.0], AttentionMask::Window(6))).unwrap_err();
    assert!(failure.what.contains("index 3 of 3 entries"), "{failure}");
    assert!(run(paged([1.0, -1.0, 0.0], AttentionMask::Causal)).is_err());
}

#[test]
fn a_cache_write_outside_of_its_sequence_poisons_the_stream() {
    for (q_len, kv_len) in [(3, 2), (2, 9)] {
        let stream = stream(Fallback::Allow);
        let (x, mut cache) = (numbers(&stream, &[3, 1, 2]), numbers(&stream, &[2, 4, 1, 2]));
        let lens = |n: [i32; 2], max| {
            Lens::new(stream.upload(&n, &Shape::new(&[2]).unwrap()).unwrap(), max, None).unwrap()
        };
        let (q_lens, kv_lens) = (lens([q_len, 0], 3), lens([kv_len, 0], 4));
        stream.run(KvCacheWrite::new(&x, &mut cache, &q_lens, &kv_lens).unwrap()).unwrap();
        let error = stream.synchronize().unwrap_err();
        let OpError::Poisoned { source, .. } = &error else { panic!("{error}") };
        assert!(matches!(**source, OpError::Data { .. }), "{error}");
    }
}

/// Runs `make(input, out)` into fresh memory and again with `out` being the input; gives both results.
fn both_ways<O: Op>(
    stream: &Stream,
    dims: &[usize],
    make: impl Fn(&Tensor, &mut Tensor) -> Result<O>,
) -> [Vec<f32>; 2] {
    let (x, mut out) = (numbers(stream, dims), numbers(stream, dims));
    stream.run(make(&x, &mut out).unwrap()).unwrap();
    stream.run(make(&x, &mut x.clone()).unwrap()).unwrap();
    [&out, &x].map(|t| stream.download(t).unwrap().wait().unwrap())
}

#[test]
fn results_in_place_are_those_of_fresh_memory() {
    let stream = stream(Fallback::Allow);
    let at = stream.upload(&[0i32, 5, 77], &Shape::new(&[3]).unwrap()).unwrap();
    let weight = numbers(&stream, &[10]);
    let other = numbers(&stream, &[3, 2, 10]);
    for results in [
        both_ways(&stream, &[3, 2, 10], |x, out| Rope::new(RopeStyle::Interleaved, x, &at, 1e4, out)),
        both_ways(&stream, &[3, 2, 10], |x, out| {
            Rope::new(RopeStyle::SplitHalf, x, &at, 1e4, out)?.rotary_dim(6)
        }),
        both_ways(&stream, &[3, 2, 10], |x, out| Softmax::new(x, out)?.scale(0.5)),
        both_ways(&stream, &[3, 2, 10], |x, out| RmsNorm::new(x, out, 1e-5)?.weight(&weight)),
        both_ways(&stream, &[3, 2, 10], |x, out| Swiglu::new(x, &other, out)),
        both_ways(&stream, &[3, 2, 10], |x, out| Swiglu::new(&other, x, out)),
    ] {
        let [fresh, in_place] = results;
        assert_eq!(fresh, in_place);
    }
}

#[test]
fn a_captured_composition_replays_with_new_contents() {
    let stream = stream(Fallback::Allow);
    let (x, mut out) = (numbers(&stream, &[2, 1, 8]), numbers(&stream, &[2, 1, 8]));
    let at = stream.upload(&[3i32, 4], &Shape::new(&[2]).unwrap()).unwrap();
    let make = |out: &mut Tensor| Rope::new(RopeStyle::SplitHalf, &x, &at, 1e4, out);
    let graph = stream.capture(|s| s.run(make(&mut out)?)).unwrap();
    for positions in [[3i32, 4], [900, 0]] {
        stream.write(&at, &positions).unwrap();
        graph.replay(&stream).unwrap();
        let replayed: Vec<f32> = stream.download(&out).unwrap().wait().unwrap();
        let mut eager = numbers(&stream, &[2, 1, 8]);
        stream.run(make(&mut eager).unwrap()).unwrap();
        assert_eq!(replayed, stream.download::<f32>(&eager).unwrap().wait().unwrap(), "{positions:?}");
    }
}

#[test]
fn a_stream_that_denies_compositions_refuses_them_with_the_reason() {
    let stream = stream(Fallback::Deny);
    let (x, mut out) = (numbers(&stream, &[2, 4]), numbers(&stream, &[2, 4]));
    let error = stream.run(Softmax::new(&x, &mut out).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(matches!(error, OpError::Unsupported { reason: Unsupported::NotImplemented, .. }), "{error}");
    assert_eq!(stream.report().compositions_total(), 0);
}
