//! Attention of training, forwards: beside the result, each row's largest score and the sum of its exponentials.

use super::attention::heads;
use super::{Args, FLOATS, Refusal, Run, run};
use crate::view::{Dtype, Tensor};

operators! {
    FlashAttentionScore(query: T, key: T, value: T, realShiftOptional: T, dropMaskOptional: T, paddingMaskOptional: T, attenMaskOptional: T, prefixOptional: IA, scaleValue: F64, keepProb: F64, preTokens: I64, nextTokens: I64, headNum: I64, inputLayout: CS, innerPrecise: I64, sparseMode: I64, softmaxMaxOut: O, softmaxSumOut: O, softmaxOutOut: O, attentionOutOut: O) = score;
    FlashAttentionScoreV4(query: T, key: T, value: T, realShiftOptional: T, dropMaskOptional: T, paddingMaskOptional: T, attenMaskOptional: T, queryRopeOptional: T, keyRopeOptional: T, dScaleQOptional: T, dScaleKOptional: T, dScaleVOptional: T, sinkOptional: T, prefixOptional: IA, actualSeqQLenOptional: IA, actualSeqKvLenOptional: IA, qStartIdxOptional: IA, kvStartIdxOptional: IA, scaleValue: F64, keepProb: F64, preTokens: I64, nextTokens: I64, headNum: I64, inputLayout: CS, innerPrecise: I64, sparseMode: I64, outDtype: I64, pseType: I64, softmaxOutLayout: CS, seed: I64, offset: I64, softmaxMaxOut: O, softmaxSumOut: O, softmaxOutOut: O, attentionOutOut: O) = score_v4;
}

/// What the fourth version adds, all of it at rest: no rotated halves, no quantised inputs, no sink, no ragged batch.
/// Without a shift `pseType` has nothing to say, nor have `seed` and `offset` where nothing is dropped.
fn score_v4(args: &Args) -> Result<Run, Refusal> {
    args.absent(&["queryRope", "keyRope", "dScaleQ", "dScaleK", "dScaleV", "sink"])?;
    args.absent(&["actualSeqQLen", "actualSeqKvLen", "qStartIdx", "kvStartIdx"])?;
    if args.int("outDtype")? != 0 {
        return Err(args.unknown_mode("outDtype", args.int("outDtype")?));
    }
    match args.text("softmaxOutLayout")? {
        "" => score(args),
        other => Err(args.unknown_mode("softmaxOutLayout", format!("{other:?}"))),
    }
}

/// Copies that the statistics have of each number: one vector of 32 bytes.
const COPIES: usize = 8;
/// Rows and columns of the triangle that modes 2 and 3 take in the place of a mask.
const TRIANGLE: usize = 2048;

/// Which keys a query may see.
enum Seen {
    All,
    /// Those whose mask, spread over [batch, heads, queries, keys], is 0.
    Mask(Tensor),
    /// Those up to its own place and so many more.
    Causal(i64),
}

/// Heads as [batch, heads, positions, width], of the layouts that have a batch.
fn batched(args: &Args, name: &str, count: usize) -> Result<Tensor, Refusal> {
    let tensor = args.tensor(name)?;
    match args.text("inputLayout")? {
        "SBH" => {
            args.ranked(name, tensor, 3, 3)?;
            heads(args, name, &tensor.permute(&[1, 0, 2]), "BSH", count)
        }
        layout @ ("BSH" | "BSND" | "BNSD") => heads(args, name, tensor, layout, count),
        other => Err(args.unknown_mode("inputLayout", other)),
    }
}

fn score(args: &Args) -> Result<Run, Refusal> {
    args.absent(&["realShift", "dropMask", "paddingMask", "prefix"])?;
    if args.float("keepProb")? != 1.0 {
        return Err(args.unknown_mode("keepProb", args.float("keepProb")?));
    }
    let query = args.tensor("query")?;
    args.one_of("query", query, FLOATS)?;
    let count = usize::try_from(args.int("headNum")?).ok().filter(|&count| count > 0);
    let count = count.ok_or_else(|| args.invalid("headNum", "is not positive"))?;
    let q = batched(args, "query", count)?;
    let (batch, queries, d) = (q.shape[0], q.shape[2], q.shape[3]);
    // Keys have a head for one or several of the queries'.
    let kv_heads = match args.text("inputLayout")? {
        "BNSD" => args.tensor("key")?.shape.get(1).copied(),
        "BSND" => args.tensor("key")?.shape.get(2).copied(),
        _ => args.tensor("key")?.shape.get(2).map(|width| width / d.max(1)),
    };
    let kv_heads = kv_heads.filter(|&heads| heads > 0 && count.is_multiple_of(heads));
    let kv_heads =
        kv_heads.ok_or_else(|| args.invalid("key", format!("has heads that do not divide {count}")))?;
    let (k, v) = (batched(args, "key", kv_heads)?, batched(args, "value", kv_heads)?);
    let (keys, width) = (k.shape[2], v.shape[3]);
    for (name, tensor) in [("key", &k), ("value", &v)] {
        args.one_of(name, tensor, &[query.dtype])?;
        if (tensor.shape[0], tensor.shape[2]) != (batch, keys) || name == "key" && tensor.shape[3] != d {
            return Err(args.invalid(name, format!("does not go with query {:?}", q.shape)));
        }
    }
    let mask = args.optional("attenMask")?;
    if let Some(mask) = mask {
        args.one_of("attenMask", mask, &[Dtype::Bool, Dtype::U8])?;
    }
    let mode = args.int("sparseMode")?;
    let seen = match (mode, mask) {
        (0, None) => Seen::All,
        (0 | 1, Some(mask)) => Seen::Mask(args.spread("attenMask", mask, &[batch, count, queries, keys])?),
        (2 | 3, Some(mask)) => {
            args.shaped("attenMask", mask, &[TRIANGLE, TRIANGLE])?;
            Seen::Causal(if mode == 2 { 0 } else { keys as i64 - queries as i64 })
        }
        (1..=3, None) => return Err(args.invalid("attenMask", format!("is needed with sparseMode {mode}"))),
        _ => return Err(args.unknown_mode("sparseMode", mode)),
    };
    let out = batched(args, "attentionOutOut", count)?;
    args.one_of("attentionOutOut", &out, &[query.dtype])?;
    args.shaped("attentionOutOut", &out, &[batch, count, queries, width])?;
    let mut statistics = Vec::new();
    for name in ["softmaxMaxOut", "softmaxSumOut"] {
        let tensor = args.tensor(name)?;
        args.one_of(name, tensor, &[Dtype::F32])?;
        args.shaped(name, tensor, &[batch, count, queries, COPIES])?;
        statistics.push(tensor.clone());
    }
    let scale = args.float("scaleValue")?;
    run(move |memory| {
        let (q, k, v) = (q.read_f64(memory)?, k.read_f64(memory)?, v.read_f64(memory)?);
        let mask = match &seen {
            Seen::Mask(mask) => mask.read_i64(memory)?,
            _ => Vec::new(),
        };
        let (mut rows, mut largest, mut sums) = (Vec::new(), Vec::new(), Vec::new());
        for row in 0..batch * count * queries {
            let (head, i) = (row / queries, row % queries);
            let of = (head / count * kv_heads + head % count / (count / kv_heads)) * keys;
            let score = |j: usize| {
                let hidden = match &seen {
                    Seen::All => false,
                    Seen::Mask(_) => mask[row * keys + j] != 0,
                    Seen::Causal(shift) => j as i64 > i as i64 + shift,
                };
                let dot =
                    q[row * d..][..d].iter().zip(&k[(of + j) * d..][..d]).map(|(q, k)| q * k).sum::<f64>();
                // What the device's vectors hold in the place of −∞.
                if hidden { f64::from(f32::MIN) } else { dot * scale }
            };
            let scores: Vec<f64> = (0..keys).map(score).collect();
            let most = scores.iter().copied().fold(f64::from(f32::MIN), f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let mut mean = vec![0.0; width];
            for (j, weight) in weights.iter().enumerate() {
                mean.iter_mut()
                    .zip(&v[(of + j) * width..][..width])
                    .for_each(|(x, v)| *x += weight / sum * v);
            }
            rows.extend(mean);
            largest.extend([most; COPIES]);
            sums.extend([sum; COPIES]);
        }
        out.write_f64(memory, &rows)?;
        statistics[0].write_f64(memory, &largest)?;
        statistics[1].write_f64(memory, &sums)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, close, noise_of};
    use super::*;

    const HEADS: usize = 4;
    const D: usize = 16;
    const Q: usize = 3;
    const K: usize = 5;

    /// One batch in BNSD with two heads of keys; `shape` gives the dimensions their places.
    fn case(layout: &str, shape: impl Fn(usize, usize) -> Vec<usize>, mode: i64) -> Case {
        case_of("FlashAttentionScore", layout, shape, mode)
    }

    fn case_of(operator: &str, layout: &str, shape: impl Fn(usize, usize) -> Vec<usize>, mode: i64) -> Case {
        let (q, k, v) = (
            noise_of(Dtype::F32, HEADS * Q * D, 1),
            noise_of(Dtype::F32, 2 * K * D, 2),
            noise_of(Dtype::F32, 2 * K * D, 3),
        );
        // From [head, position, width] to [position, head, width] where the layout has it so.
        let order = |x: &[f64], heads: usize, length: usize| -> Vec<f64> {
            if layout == "BNSD" {
                return x.to_vec();
            }
            let rows = (0..length).flat_map(|s| (0..heads).map(move |n| (n, s)));
            rows.flat_map(|(n, s)| x[(n * length + s) * D..][..D].to_vec()).collect()
        };
        let case = Case::new(Soc::A2, operator)
            .input("query", Dtype::F32, &shape(HEADS, Q), &order(&q, HEADS, Q))
            .input("key", Dtype::F32, &shape(2, K), &order(&k, 2, K))
            .input("value", Dtype::F32, &shape(2, K), &order(&v, 2, K));
        let case = case.float("scaleValue", 0.25).float("keepProb", 1.0).int("headNum", HEADS as i64);
        let case = case.text("inputLayout", layout).int("sparseMode", mode);
        let statistics: &[usize] = &[1, HEADS, Q, COPIES];
        case.output("softmaxMaxOut", Dtype::F32, statistics)
            .output("softmaxSumOut", Dtype::F32, statistics)
            .output("attentionOutOut", Dtype::F32, &shape(HEADS, Q))
    }

    #[test]
    fn layouts_agree_and_statistics_give_the_weights_again() {
        let bnsd = case("BNSD", |n, s| vec![1, n, s, D], 0).done();
        let bsh = case("BSH", |n, s| vec![1, s, n * D], 0).done();
        let sbh = case("SBH", |n, s| vec![s, 1, n * D], 0).done();
        let (a, b) = (bnsd.read("attentionOutOut"), bsh.read("attentionOutOut"));
        assert_eq!(b, sbh.read("attentionOutOut"));
        for (n, s) in (0..HEADS).flat_map(|n| (0..Q).map(move |s| (n, s))) {
            assert_eq!(a[(n * Q + s) * D..][..D], b[(s * HEADS + n) * D..][..D]);
        }
        let (q, k, v) = (bnsd.read("query"), bnsd.read("key"), bnsd.read("value"));
        let (most, sum) = (bnsd.read("softmaxMaxOut"), bnsd.read("softmaxSumOut"));
        for row in 0..HEADS * Q {
            let kv = row / Q / 2 * K;
            let weight = |j: usize| {
                let dot: f64 = (0..D).map(|i| q[row * D + i] * k[(kv + j) * D + i]).sum();
                (0.25 * dot - most[row * COPIES + 7]).exp() / sum[row * COPIES]
            };
            let want: Vec<f64> =
                (0..D).map(|i| (0..K).map(|j| weight(j) * v[(kv + j) * D + i]).sum()).collect();
            close(&a[row * D..][..D], &want, 1e-5);
        }
    }

    #[test]
    fn triangles_and_masks_hide_keys() {
        let shape = |n: usize, s: usize| vec![1, n, s, D];
        // A mask of its own that hides what the right-down triangle hides.
        let hidden: Vec<f64> = (0..Q * K).map(|at| f64::from(u8::from(at % K > at / K + K - Q))).collect();
        let given = case("BNSD", shape, 0).input("attenMaskOptional", Dtype::U8, &[Q, K], &hidden).done();
        let mut right = case("BNSD", shape, 3);
        let triangle = right.allocate(Dtype::Bool, &[TRIANGLE, TRIANGLE]);
        let right = right.set("attenMaskOptional", super::super::Value::Tensor(Some(triangle)));
        let right = right.done();
        assert_eq!(right.read("attentionOutOut"), given.read("attentionOutOut"));
        // The first query of the left-up triangle sees the first key alone.
        let mut left = case("BNSD", shape, 2);
        let triangle = left.allocate(Dtype::Bool, &[TRIANGLE, TRIANGLE]);
        let left = left.set("attenMaskOptional", super::super::Value::Tensor(Some(triangle))).done();
        close(&left.read("attentionOutOut")[..D], &left.read("value")[..D], 1e-6);
        assert_eq!(left.read("softmaxSumOut")[0], 1.0);
        assert!(case("BNSD", shape, 2).refused().message.contains("attenMask is needed"));
        assert!(case("TND", shape, 0).refused().message.contains("inputLayout"));
    }

    #[test]
    fn the_fourth_version_with_nothing_more_is_the_first() {
        let shape = |n: usize, s: usize| vec![1, n, s, D];
        let first = case("BNSD", shape, 0).done();
        let fourth = case_of("FlashAttentionScoreV4", "BNSD", shape, 0).done();
        for name in ["attentionOutOut", "softmaxMaxOut", "softmaxSumOut"] {
            assert_eq!(fourth.read(name), first.read(name), "{name}");
        }
        for (name, value) in [("outDtype", 1), ("headNum", 0)] {
            let refused = case_of("FlashAttentionScoreV4", "BNSD", shape, 0).int(name, value).refused();
            assert!(refused.message.contains(name), "{}", refused.message);
        }
        let ragged = case_of("FlashAttentionScoreV4", "BNSD", shape, 0).ints("actualSeqQLenOptional", &[3]);
        assert!(ragged.refused().message.contains("actualSeqQLen is not simulated"));
        let laid =
            case_of("FlashAttentionScoreV4", "BNSD", shape, 0).text("softmaxOutLayout", "same_as_input");
        assert!(laid.refused().message.contains("softmaxOutLayout"));
    }

    #[test]
    fn a_prefix_of_no_lengths_is_no_prefix() {
        let shape = |n: usize, s: usize| vec![1, n, s, D];
        let none = case("BNSD", shape, 0).done();
        let empty = case("BNSD", shape, 0).ints("prefixOptional", &[]).done();
        assert_eq!(empty.read("attentionOutOut"), none.read("attentionOutOut"));
        let refused = case("BNSD", shape, 0).ints("prefixOptional", &[1]).refused();
        assert!(refused.message.contains("prefix is not simulated"), "{}", refused.message);
    }
}
