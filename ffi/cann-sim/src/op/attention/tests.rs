//! Attention against its definition, one query and head at a time.

use super::super::Soc;
use super::super::testing::{Case, Layout, close, noise_of};
use super::*;

const D: usize = 16;

/// One query of one head, straight from the definition; `bias` is added to the scores.
fn direct(q: &[f64], k: &[f64], v: &[f64], scale: f64, bias: &[f64]) -> Vec<f64> {
    let score = |j: usize| scale * (0..D).map(|p| q[p] * k[j * D + p]).sum::<f64>() + bias[j];
    let weights: Vec<f64> = (0..bias.len()).map(|j| score(j).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..D).map(|p| weights.iter().enumerate().map(|(j, w)| w * v[j * D + p]).sum::<f64>() / sum).collect()
}

struct Problem {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

const HEADS: usize = 4;
const KV: usize = 2;

/// [batch 1, 2 queries of 4 heads, 5 keys of 2 heads], as BNSD.
fn problem() -> Problem {
    let make = |count, seed| noise_of(Dtype::F16, count * D, seed);
    Problem { q: make(HEADS * 2, 1), k: make(KV * 5, 2), v: make(KV * 5, 3) }
}

fn case(name: &str, layout: &str) -> Case {
    let case = Case::new(Soc::A2, name).text("inputLayout", layout).int("numHeads", HEADS as i64);
    case.int("numKeyValueHeads", KV as i64)
        .float("scaleValue", 0.25)
        .int("preTokens", 65535)
        .int("nextTokens", 65535)
}

fn check(got: &[f64], problem: &Problem, bias: impl Fn(usize, usize) -> f64) {
    for head in 0..HEADS {
        for i in 0..2 {
            let kv = head / 2 * 5 * D..(head / 2 + 1) * 5 * D;
            let bias: Vec<f64> = (0..5).map(|j| bias(i, j)).collect();
            let at = (head * 2 + i) * D;
            let want = direct(&problem.q[at..][..D], &problem.k[kv.clone()], &problem.v[kv], 0.25, &bias);
            close(&got[at..][..D], &want, 1e-3);
        }
    }
}

fn hidden(when: bool) -> f64 {
    if when { f64::NEG_INFINITY } else { 0.0 }
}

#[test]
fn attention_agrees_with_its_definition_under_shift_and_mask() {
    let p = problem();
    let base = |layout| {
        let mut case = case("FusedInferAttentionScoreV2", "BNSD").laid(layout);
        case = case.input("query", Dtype::F16, &[1, HEADS, 2, D], &p.q);
        case = case
            .list("key", &[(Dtype::F16, &[1, KV, 5, D], &p.k)])
            .list("value", &[(Dtype::F16, &[1, KV, 5, D], &p.v)]);
        case.output("attentionOut", Dtype::F16, &[1, HEADS, 2, D])
    };
    for layout in [Layout::Contiguous, Layout::Stepped] {
        check(&base(layout).done().read("attentionOut"), &p, |_, _| 0.0);
    }
    let shift: Vec<f64> = (0..HEADS * 10).map(|i| Dtype::F16.round((i % 10) as f64 / 8.0)).collect();
    let shifted =
        base(Layout::Contiguous).input("pseShiftOptional", Dtype::F16, &[1, HEADS, 2, 5], &shift).done();
    check(&shifted.read("attentionOut"), &p, |i, j| (i * 5 + j) as f64 / 8.0);
    let mask = [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0];
    let masked =
        base(Layout::Contiguous).input("attenMaskOptional", Dtype::Bool, &[1, 1, 2, 5], &mask).done();
    check(&masked.read("attentionOut"), &p, |i, j| hidden(mask[i * 5 + j] != 0.0));
    let mut causal = base(Layout::Contiguous).int("sparseMode", 3);
    // The compressed mask lies outside the arena: only its shape is looked at.
    let compressed = Tensor::contiguous(Dtype::Bool, &[2048, 2048], 0);
    causal = causal.set("attenMaskOptional", super::super::Value::Tensor(Some(compressed))).done();
    check(&causal.read("attentionOut"), &p, |i, j| hidden(j > i + 3));
}

#[test]
fn a_row_without_keys_is_zero_only_where_it_is_corrected() {
    let p = problem();
    let row = |precise| {
        let case = case("FusedInferAttentionScoreV2", "BNSD").int("innerPrecise", precise);
        let case = case.input("query", Dtype::F16, &[1, HEADS, 2, D], &p.q).flag("softmaxLseFlag", true);
        let case = case
            .list("key", &[(Dtype::F16, &[1, KV, 5, D], &p.k)])
            .list("value", &[(Dtype::F16, &[1, KV, 5, D], &p.v)]);
        let case = case.input("attenMaskOptional", Dtype::Bool, &[2, 5], &[1.0; 10]);
        let case = case.output("attentionOut", Dtype::F16, &[1, HEADS, 2, D]).output(
            "softmaxLse",
            Dtype::F32,
            &[1, HEADS, 2, 1],
        );
        case.done().read("attentionOut")[0]
    };
    assert_eq!(row(2), 0.0);
    close(&[row(0)], &[(0..5).map(|j| p.v[j * D]).sum::<f64>() / 5.0], 1e-3);
}

#[test]
fn layouts_are_views_of_the_same_heads() {
    let p = problem();
    // BSND and BSH from BNSD: positions before heads.
    let swap = |x: &[f64], heads: usize, positions: usize| -> Vec<f64> {
        (0..positions)
            .flat_map(|s| (0..heads).flat_map(move |h| (0..D).map(move |e| (s, h, e))))
            .map(|(s, h, e)| x[(h * positions + s) * D + e])
            .collect()
    };
    let (q, k, v) = (swap(&p.q, HEADS, 2), swap(&p.k, KV, 5), swap(&p.v, KV, 5));
    for (layout, lead) in [("BSND", true), ("BSH", true), ("TND", false)] {
        let shape = |positions, heads: usize| match layout {
            "BSH" => vec![1, positions, heads * D],
            _ if lead => vec![1, positions, heads, D],
            _ => vec![positions, heads, D],
        };
        let mut case =
            case("FusedInferAttentionScoreV5", layout).input("query", Dtype::F16, &shape(2, HEADS), &q);
        case = case
            .list("key", &[(Dtype::F16, &shape(5, KV), &k)])
            .list("value", &[(Dtype::F16, &shape(5, KV), &v)]);
        case = case.ints("actualSeqLengthsOptional", &[2]).ints("actualSeqLengthsKvOptional", &[5]);
        let got = case.output("attentionOut", Dtype::F16, &shape(2, HEADS)).done().read("attentionOut");
        check(&swap(&got, 2, HEADS), &p, |_, _| 0.0);
    }
}

#[test]
fn paged_keys_are_found_by_their_table() {
    let p = problem();
    // Block 2 of 3 holds all five keys; rows after them are poison.
    let mut pages = vec![vec![f64::NAN; 3 * 16 * KV * D]; 2];
    for (page, rows) in pages.iter_mut().zip([&p.k, &p.v]) {
        for h in 0..KV {
            for s in 0..5 {
                for e in 0..D {
                    page[((2 * 16 + s) * KV + h) * D + e] = rows[(h * 5 + s) * D + e];
                }
            }
        }
    }
    let mut case =
        case("FusedInferAttentionScoreV3", "BNSD").input("query", Dtype::F16, &[1, HEADS, 2, D], &p.q);
    case = case
        .list("key", &[(Dtype::F16, &[3, 16, KV * D], &pages[0])])
        .list("value", &[(Dtype::F16, &[3, 16, KV * D], &pages[1])]);
    case = case.input("blockTableOptional", Dtype::I32, &[1, 2], &[2.0, 99.0]).int("blockSize", 16);
    case =
        case.ints("actualSeqLengthsKvOptional", &[5]).output("attentionOut", Dtype::F16, &[1, HEADS, 2, D]);
    check(&case.done().read("attentionOut"), &p, |_, _| 0.0);
}

#[test]
fn a_sink_takes_weight_and_gives_nothing() {
    let v = noise_of(Dtype::F16, D, 9);
    let mut case =
        Case::new(Soc::A3, "FusedInferAttentionScoreV4").text("inputLayout", "BNSD").int("numHeads", 1);
    case = case
        .input("query", Dtype::F16, &[1, 1, 1, D], &[0.0; D])
        .list("key", &[(Dtype::F16, &[1, 1, 1, D], &[0.0; D])]);
    case = case.list("value", &[(Dtype::F16, &[1, 1, 1, D], &v)]).input(
        "learnableSinkOptional",
        Dtype::F16,
        &[1],
        &[0.0],
    );
    let got = case.output("attentionOut", Dtype::F16, &[1, 1, 1, D]).done().read("attentionOut");
    close(&got, &v.iter().map(|v| v / 2.0).collect::<Vec<_>>(), 1e-3);
}

#[test]
fn what_is_not_simulated_is_named() {
    let base = |name| case(name, "BNSD").input("query", Dtype::F16, &[1, HEADS, 2, D], &problem().q);
    let lists = |case: Case| {
        let p = problem();
        let case = case
            .list("key", &[(Dtype::F16, &[1, KV, 5, D], &p.k)])
            .list("value", &[(Dtype::F16, &[1, KV, 5, D], &p.v)]);
        case.output("attentionOut", Dtype::F16, &[1, HEADS, 2, D])
    };
    let mode = lists(base("FusedInferAttentionScoreV2")).int("sparseMode", 9).refused();
    assert!(mode.message.contains("sparseMode = 9"), "{mode:?}");
    let quantized =
        lists(base("FusedInferAttentionScoreV2")).input("antiquantScaleOptional", Dtype::F16, &[1], &[1.0]);
    assert!(quantized.refused().message.contains("antiquantScale"));
}
