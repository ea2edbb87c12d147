//! Sampling: the likeliest tokens kept, the others made impossible, and one of them picked.

use super::sort::ascending;
use super::{Args, FLOATS, Refusal, Run, run};
use crate::view::{Dtype, Tensor};

operators! {
    ApplyTopKTopP(logits: T, p: T, k: T, out: O) = apply;
    TopKTopPSample(logits: T, topK: T, topP: T, q: T, eps: F64, isNeedLogits: B, topKGuess: I64, logitsSelectIdx: O, logitsTopKPSelect: O) = sample;
}

/// A row with every token but those that are kept at −∞: the k largest, and of these the fewest whose probabilities
/// reach p. Tokens that are equal to the last one that k keeps are kept too.
fn keep(row: &[f64], k: Option<i64>, p: Option<f64>) -> Vec<f64> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&i, &j| ascending(row[i], row[j]));
    let mut kept = row.to_vec();
    if let Some(k) = k.and_then(|k| usize::try_from(k).ok()).filter(|k| (1..=row.len()).contains(k)) {
        let least = row[order[row.len() - k]];
        kept.iter_mut().filter(|x| **x < least).for_each(|x| *x = f64::NEG_INFINITY);
    }
    let (Some(p), Some(&largest)) = (p, order.last()) else { return kept };
    let weights = softmax(&kept);
    let mut below = 0.0;
    for &place in order.iter().filter(|place| **place != largest) {
        below += weights[place];
        if below <= 1.0 - p {
            kept[place] = f64::NEG_INFINITY;
        }
    }
    kept
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = row.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Logits [rows, tokens], and one k and one p for each row.
fn arguments(args: &Args, names: [&str; 2]) -> Result<(Tensor, Option<Tensor>, Option<Tensor>), Refusal> {
    let logits = args.tensor("logits")?;
    args.one_of("logits", logits, FLOATS)?;
    args.ranked("logits", logits, 2, 2)?;
    let (k, p) = (args.optional(names[0])?, args.optional(names[1])?);
    for (name, tensor, dtype) in [(names[0], k, Dtype::I32), (names[1], p, logits.dtype)] {
        if let Some(tensor) = tensor {
            args.one_of(name, tensor, &[dtype])?;
            args.shaped(name, tensor, &logits.shape[..1])?;
        }
    }
    Ok((logits.clone(), k.cloned(), p.cloned()))
}

fn apply(args: &Args) -> Result<Run, Refusal> {
    let (logits, k, p) = arguments(args, ["k", "p"])?;
    let out = args.tensor("out")?.clone();
    args.one_of("out", &out, &[logits.dtype])?;
    args.shaped("out", &out, &logits.shape)?;
    run(move |memory| {
        let k = k.as_ref().map(|k| k.read_i64(memory)).transpose()?;
        let p = p.as_ref().map(|p| p.read_f64(memory)).transpose()?;
        let rows = logits.read_f64(memory)?;
        let rows = rows.chunks(logits.shape[1].max(1)).enumerate();
        let at = |row: usize| (k.as_ref().map(|k| k[row]), p.as_ref().map(|p| p[row]));
        let kept: Vec<f64> = rows.flat_map(|(number, row)| keep(row, at(number).0, at(number).1)).collect();
        out.write_f64(memory, &kept)
    })
}

/// The token whose probability, over q + ε where there is a q, is the largest: q of exponential noise makes that a draw.
fn sample(args: &Args) -> Result<Run, Refusal> {
    let (logits, k, p) = arguments(args, ["topK", "topP"])?;
    args.one_of("logits", &logits, &[Dtype::F16, Dtype::Bf16])?;
    let (Some(k), Some(p)) = (k, p) else { return Err(args.invalid("topK", "and topP are needed")) };
    let q = args.optional("q")?.cloned();
    if let Some(q) = &q {
        args.one_of("q", q, &[Dtype::F32])?;
        args.shaped("q", q, &logits.shape)?;
    }
    let index = args.tensor("logitsSelectIdx")?.clone();
    args.one_of("logitsSelectIdx", &index, &[Dtype::I64])?;
    args.shaped("logitsSelectIdx", &index, &logits.shape[..1])?;
    let kept_out = match args.flag("isNeedLogits")? {
        false => None,
        true => {
            let out = args.tensor("logitsTopKPSelect")?;
            args.one_of("logitsTopKPSelect", out, &[Dtype::F32])?;
            args.shaped("logitsTopKPSelect", out, &logits.shape)?;
            Some(out.clone())
        }
    };
    let epsilon = args.float("eps")?;
    run(move |memory| {
        let (rows, k, p) = (logits.read_f64(memory)?, k.read_i64(memory)?, p.read_f64(memory)?);
        let q = q.as_ref().map(|q| q.read_f64(memory)).transpose()?;
        let width = logits.shape[1].max(1);
        let (mut all, mut places) = (Vec::new(), Vec::new());
        for (number, row) in rows.chunks(width).enumerate() {
            let kept = keep(row, Some(k[number]), Some(p[number]));
            let noise = |at: usize| q.as_ref().map_or(1.0, |q| q[number * width + at].abs() + epsilon);
            let weights: Vec<f64> = softmax(&kept).iter().enumerate().map(|(at, w)| w / noise(at)).collect();
            // The first of equals.
            let best = (0..weights.len()).rev().max_by(|&i, &j| ascending(weights[i], weights[j]));
            places.push(best.unwrap_or(0) as i64);
            all.extend(kept);
        }
        index.write_i64(memory, &places)?;
        kept_out.iter().try_for_each(|out| out.write_f64(memory, &all))
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::Case;
    use super::*;

    /// Probabilities 0.5, 0.25, 0.125 and 0.125 in some order.
    const ROW: [f64; 4] = [0.0, 2.0, 1.0, 0.0];
    const NONE: f64 = f64::NEG_INFINITY;

    fn row() -> Vec<f64> {
        ROW.iter().map(|x| x * 2f64.ln()).collect()
    }

    fn kept(k: f64, p: f64) -> Vec<f64> {
        let case = Case::new(Soc::A3, "ApplyTopKTopP").input("logits", Dtype::F32, &[1, 4], &row());
        let case = case.input("k", Dtype::I32, &[1], &[k]).input("p", Dtype::F32, &[1], &[p]);
        let case = case.output("out", Dtype::F32, &[1, 4]).done();
        case.read("out").iter().map(|x| if *x == NONE { NONE } else { (x / 2f64.ln()).round() }).collect()
    }

    #[test]
    fn the_largest_are_kept_and_of_them_the_fewest_that_reach_p() {
        assert_eq!(kept(2.0, 1.0), [NONE, 2.0, 1.0, NONE]);
        // The last that k keeps has an equal.
        assert_eq!(kept(3.0, 1.0), ROW);
        assert_eq!(kept(0.0, 0.7), [NONE, 2.0, 1.0, NONE]);
        assert_eq!(kept(4.0, 0.4), [NONE, 2.0, NONE, NONE]);
        // After k = 2 the probabilities are 2/3 and 1/3.
        assert_eq!(kept(2.0, 0.6), [NONE, 2.0, NONE, NONE]);
        assert_eq!(kept(2.0, 0.7), [NONE, 2.0, 1.0, NONE]);
        assert_eq!(kept(1.0, 0.0), [NONE, 2.0, NONE, NONE]);
    }

    #[test]
    fn noise_picks_among_what_is_kept() {
        let pick = |noise: Option<[f64; 4]>| {
            let case = Case::new(Soc::A2, "TopKTopPSample").input("logits", Dtype::F16, &[1, 4], &ROW);
            let case = case.input("topK", Dtype::I32, &[1], &[2.0]).input("topP", Dtype::F16, &[1], &[1.0]);
            let case = match noise {
                Some(noise) => case.input("q", Dtype::F32, &[1, 4], &noise),
                None => case,
            };
            let case = case.float("eps", 1e-8).flag("isNeedLogits", true);
            let case = case
                .output("logitsSelectIdx", Dtype::I64, &[1])
                .output("logitsTopKPSelect", Dtype::F32, &[1, 4])
                .done();
            assert_eq!(case.read("logitsTopKPSelect"), [NONE, 2.0, 1.0, NONE]);
            case.read("logitsSelectIdx")[0]
        };
        assert_eq!(pick(None), 1.0);
        // However much the noise favours them, tokens that were not kept are not picked.
        assert_eq!(pick(Some([1e-6, 1.0, 0.1, 1e-6])), 2.0);
        assert_eq!(pick(Some([1e-6, 1.0, 0.9, 1e-6])), 1.0);
    }
}
