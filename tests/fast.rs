//! What `Precision::Fast` does to a whole model, against the f64 oracle that rounds activations too: on every path of this
//! processor, whatever rows a pass has.
//!
//! The half-width cache is held apart from the codes, with exact activations: its error is smooth, theirs is not.
#![cfg(feature = "cpu")]
#![allow(clippy::unwrap_used, missing_docs)]

use portolan::cpu::{CpuBackend, CpuOptions, Isa};
use portolan::models::{Int8Logits, LanguageModel, Llama, OracleLlama, embedded};
use portolan::nn::{Batch, Cache, KvCache, Precision};
use portolan::{DType, Registry, Stream, StreamOptions};

/// Sequences, tokens run at once and tokens run one by one behind them.
const SEQUENCES: usize = 40;
const PREFILL: usize = 4;
const DECODE: usize = 2;
const LEN: usize = PREFILL + DECODE;
/// The largest error accepted where every code is the oracle's, as a fraction of the largest logit: that of an f32 sum of
/// 160 products, the longest here, were all its errors of one sign.
const LIMIT: f64 = 160.0 * f32::EPSILON as f64 / 2.0;
/// The largest error of an activation before it is rounded, as a fraction of the largest of its group. Sums of up to 160
/// products in f32 err by about √160·u ≈ 13·u, norms and attention by less; twice that, and a little for the second layer.
const ACTIVATION_ERROR: f64 = 32.0 * f32::EPSILON as f64 / 2.0;

fn sequences() -> Vec<Vec<u32>> {
    let token = |s: usize, t: usize| ((s * 53 + t * 29 + s * t * 7 + 5) % 128) as u32;
    (0..SEQUENCES).map(|s| (0..LEN).map(|t| token(s, t)).collect()).collect()
}

fn paths() -> Vec<(Isa, Stream)> {
    let open = |isa| {
        let cpu = CpuBackend::new(CpuOptions { isa: Some(isa), ..CpuOptions::default() }).ok()?;
        let device = Registry::new().with(cpu).open("cpu:0").unwrap();
        Some((isa, device.stream(StreamOptions::default()).unwrap()))
    };
    Isa::ALL.into_iter().filter_map(open).collect()
}

fn load(stream: &Stream, precision: Precision) -> Llama {
    Llama::load(stream, &embedded().unwrap(), precision, &mut |_, _| {}).unwrap()
}

fn cache(stream: &Stream, model: &Llama, batch: usize, dtype: DType) -> Cache {
    let config = model.config();
    KvCache::new(stream, config.layers, batch, LEN, config.num_kv_heads, config.head_dim, dtype)
        .unwrap()
        .into()
}

/// Logits `[sequences · LEN, vocab]`: all sequences in every pass, their first tokens at once, the others one by one.
fn answer(stream: &Stream, model: &Llama, sequences: &[Vec<u32>], mut cache: Cache) -> Vec<f64> {
    let vocab = model.config().vocab;
    let mut logits = vec![f64::NAN; sequences.len() * LEN * vocab];
    let mut start = 0;
    for tokens in [PREFILL].into_iter().chain([1; DECODE]) {
        let parts: Vec<&[u32]> = sequences.iter().map(|s| &s[start..start + tokens]).collect();
        let batch = Batch::new(stream, &parts, &vec![start; parts.len()], LEN).unwrap();
        let out = model.forward(stream, &batch, &mut cache).unwrap();
        let rows = stream.download::<f32>(&out).unwrap().wait().unwrap();
        assert_eq!(rows.len(), parts.len() * tokens * vocab);
        for (i, row) in rows.chunks(vocab).enumerate() {
            let at = (i / tokens * LEN + start + i % tokens) * vocab;
            logits[at..at + vocab].iter_mut().zip(row).for_each(|(to, x)| *to = f64::from(*x));
        }
        start += tokens;
    }
    logits
}

/// The largest difference, as a fraction of the largest logit.
fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().all(|x| x.is_finite()));
    let (difference, largest) = portolan_ops::max_abs_difference(got, want);
    difference / largest
}

#[test]
fn int8_activations_agree_with_the_oracle_wherever_codes_are_settled() {
    let oracle = OracleLlama::load(&embedded().unwrap()).unwrap();
    let sequences = sequences();
    let want: Vec<Int8Logits> = sequences.iter().map(|s| oracle.int8_logits(s).unwrap()).collect();
    for (isa, stream) in paths() {
        let model = load(&stream, Precision::Fast);
        let vocab = model.config().vocab;
        // Rows of a pass: 160 and 40, 20 and 5, 4 and 1, which take tiles of every height.
        for together in [SEQUENCES, 5, 1] {
            let (mut worst, mut settled, mut decoded) = (0.0, 0, 0);
            for (sequences, want) in sequences.chunks(together).zip(want.chunks(together)) {
                let cache = cache(&stream, &model, sequences.len(), DType::F32);
                let got = answer(&stream, &model, sequences, cache);
                for (got, want) in got.chunks(LEN * vocab).zip(want) {
                    let rows = got.chunks(vocab).zip(want.logits.chunks(vocab)).zip(&want.margins);
                    for (t, ((got, want), _)) in rows.enumerate().filter(|(_, (_, m))| **m > ACTIVATION_ERROR)
                    {
                        worst = f64::max(worst, distance(got, want));
                        settled += 1;
                        decoded += usize::from(t >= PREFILL);
                    }
                }
            }
            println!(
                "{isa:?}, {together} together: {settled} settled tokens, {decoded} decoded, {worst:.2e}"
            );
            assert!(settled >= 40 && decoded >= 8, "{settled} settled tokens, {decoded} of them decoded");
            assert!(worst <= LIMIT, "{isa:?}, {together} together: {worst:e} of the largest logit");
        }
    }
}

#[test]
fn rounding_is_what_the_oracle_would_notice() {
    let oracle = OracleLlama::load(&embedded().unwrap()).unwrap();
    for sequence in sequences() {
        let (exact, int8) = (oracle.logits(&sequence).unwrap(), oracle.int8_logits(&sequence).unwrap());
        let distance = distance(&int8.logits, &exact);
        assert!(distance > 100.0 * LIMIT, "int8 activations change {sequence:?} by {distance:e} only");
        assert!(int8.margins.is_sorted_by(|a, b| a >= b) && int8.margins[0] < f64::INFINITY);
    }
}

/// Keys and values err by u = 2^−11 of themselves each: values move what attention gives by u, keys its scores, which
/// stay below 4 here, by u of them. Both layers together: 2·(1 + 4)·u of the largest logit.
#[test]
fn a_half_width_cache_costs_no_more_than_its_rounding() {
    let limit = 10.0 * DType::F16.unit_roundoff();
    let oracle = OracleLlama::load(&embedded().unwrap()).unwrap();
    let sequences = sequences();
    let want: Vec<f64> = sequences.iter().flat_map(|s| oracle.logits(s).unwrap()).collect();
    for (isa, stream) in paths() {
        let model = load(&stream, Precision::Exact);
        let cache = cache(&stream, &model, SEQUENCES, DType::F16);
        let distance = distance(&answer(&stream, &model, &sequences, cache), &want);
        println!("{isa:?}: {distance:.2e}");
        assert!(distance <= limit, "{isa:?}: {distance:e}, accepted {limit:e}");
        // Else the cache was not what it was asked to be.
        assert!(distance > LIMIT, "{isa:?}: {distance:e}");
    }
}

#[test]
fn the_cache_of_a_fast_model_is_half_as_wide_as_an_exact_ones() {
    for (precision, half) in [(Precision::Fast, true), (Precision::Exact, false)] {
        let (_, stream) = paths().pop().unwrap();
        let model = load(&stream, precision);
        let sequences = sequences();
        let own = answer(&stream, &model, &sequences, model.cache(&stream, SEQUENCES, LEN).unwrap());
        for dtype in [DType::F16, DType::F32] {
            let given = answer(&stream, &model, &sequences, cache(&stream, &model, SEQUENCES, dtype));
            assert_eq!(own == given, (dtype == DType::F16) == half, "{precision:?} {dtype}");
        }
    }
}
