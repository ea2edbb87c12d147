//! What is written into a cache is what attention reads from it, however the cache spells it.
#![allow(clippy::unwrap_used, missing_docs)]

mod rig;

use portolan_conformance::ReferenceBackend;
use portolan_core::call::{Attention, KvCacheWrite, PagedAttention};
use portolan_core::{Lens, Registry, Stream, Tensor};
use portolan_ops::{DType, Fill, Shape, TensorSpec, rounded};
use rig::{down, queued, stream};

/// Tokens of each sequence; all of them are new.
const LENS: [u32; 2] = [5, 3];
const TOKENS: usize = 8;
/// Room for a sequence, in pages of 16 where there are pages.
const ROOM: usize = 32;
const HEADS: usize = 2;
const WIDTH: usize = 24;

/// Numbers in [−1, 1), as `dtype` has them.
fn numbers(s: &Stream, seed: u64, dtype: DType) -> Tensor {
    let spec = TensorSpec::of(DType::F32, &[TOKENS, HEADS, WIDTH]).unwrap();
    let values = Fill::Unit.draw(&spec, seed).into_iter().map(|v| rounded(dtype, v) as f32);
    s.upload(&values.collect::<Vec<_>>(), spec.shape()).unwrap()
}

/// Attention over a cache of `[2, ROOM]` entries or of pages, which holds the numbers as `kept`; with a scale of 1
/// that is one element for the whole cache, where there are scales.
fn attend(s: &Stream, kept: DType, drawn_as: DType, table: Option<&Tensor>) -> Vec<f32> {
    let (q, k, v) = (numbers(s, 1, DType::F32), numbers(s, 2, drawn_as), numbers(s, 3, drawn_as));
    let dims = if table.is_some() { [4, ROOM / 2, HEADS] } else { [2, ROOM, HEADS] };
    let cache = TensorSpec::of(kept, &[dims[0], dims[1], dims[2], WIDTH]).unwrap();
    let [mut keys, mut values] = [s.empty(&cache).unwrap(), s.empty(&cache).unwrap()];
    let lens = Lens::upload(s, &LENS, ROOM as u32).unwrap();
    for (x, cache) in [(&k, &mut keys), (&v, &mut values)] {
        match table {
            None => s.run(KvCacheWrite::new(x, cache, &lens, &lens).unwrap()).unwrap(),
            Some(table) => s.run(KvCacheWrite::paged(x, cache, table, &lens, &lens).unwrap()).unwrap(),
        }
    }
    let one = s.upload(&[1f32], &Shape::new(&[1, 1, 1]).unwrap()).unwrap();
    let one = one.broadcast_to(&dims).unwrap();
    assert_eq!(one.spec().strides(), [0, 0, 0]);
    let mut out = s.empty(q.spec()).unwrap();
    let (k, v) = ([&keys, &one], [&values, &one]);
    match (kept == DType::F32, table) {
        (true, None) => s.run(Attention::new(&q, k[0], v[0], &lens, &lens, &mut out).unwrap()).unwrap(),
        (false, None) => s.run(Attention::quantized(&q, k, v, &lens, &lens, &mut out).unwrap()).unwrap(),
        (true, Some(table)) => {
            s.run(PagedAttention::new(&q, k[0], v[0], table, &lens, &lens, &mut out).unwrap()).unwrap();
        }
        (false, Some(table)) => {
            s.run(PagedAttention::quantized(&q, k, v, table, &lens, &lens, &mut out).unwrap()).unwrap();
        }
    }
    down(s, &out)
}

#[test]
fn a_cache_of_f8_numbers_is_one_of_codes_with_a_single_scale_of_1() {
    let reference = Registry::new().with(ReferenceBackend::new()).open("reference:0").unwrap();
    for s in [stream(&queued()), stream(&reference)] {
        let pages = s.upload(&[2i32, 0, 3, 1], &Shape::new(&[2, 2]).unwrap()).unwrap();
        for table in [None, Some(&pages)] {
            for dtype in [DType::F8E4M3, DType::F8E5M2] {
                // The numbers are those of the f8 type before either cache gets them.
                let (codes, numbers) =
                    (attend(&s, dtype, dtype, table), attend(&s, DType::F32, dtype, table));
                let worst = codes.iter().zip(&numbers).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
                // Weights of at most 5 keys and values in [−1, 1]: sums in another order, and no rounding of values.
                assert!(worst <= 16.0 * f32::EPSILON, "{dtype}, {:?}, paged {}: {worst}", s, table.is_some());
                // And they are not those of a cache that was given other numbers.
                let rough = attend(&s, dtype, DType::F32, table);
                assert_ne!(codes, attend(&s, DType::F32, DType::F32, table), "{dtype}");
                assert_eq!(codes, rough, "{dtype}: writing rounds to nearest even");
            }
        }
    }
}
