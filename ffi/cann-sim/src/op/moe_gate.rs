//! Which experts a token goes to, and with which weights.

use super::softmax::softmax_of;
use super::unary::sigmoid;
use super::{Args, Body, FLOATS, Refusal, Run, Soc, run};
use crate::view::{Dtype, Tensor};

operators! {
    MoeGatingTopKSoftmax(x: T, finishedOptional: T, k: I64, yOut: O, expertIdxOut: O, rowIdxOut: O) = softmax_first;
    MoeGatingTopKSoftmaxV2(x: T, finishedOptional: T, k: I64, renorm: I64, outputSoftmaxResultFlag: B, yOut: O, expertIdxOut: O, softmaxResultOutOptional: O) = softmax_either;
    MoeGatingTopK(x: T, biasOptional: T, k: I64, kGroup: I64, groupCount: I64, groupSelectMode: I64, renorm: I64, normType: I64, outFlag: B, routedScalingFactor: F64, eps: F64, yOut: O, expertIdxOut: O, outOut: O) = grouped;
    MoeGatingTopKV2(x: T, biasOptional: T, inputIdsOptional: T, tid2eidOptional: T, k: I64, kGroup: I64, groupCount: I64, groupSelectMode: I64, renorm: I64, normType: I64, outFlag: B, routedScalingFactor: F64, eps: F64, yOut: O, expertIdxOut: O, outOut: O) = grouped;
}

/// Places of the k largest, the largest first and the earlier of equals first.
fn largest(row: &[f64], k: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    places.sort_by(|&i, &j| row[j].total_cmp(&row[i]));
    places.truncate(k);
    places
}

/// The scores, how many experts they are for, k, and the two outputs every gate has.
fn arguments(args: &Args) -> Result<(Tensor, usize, usize, Tensor, Tensor), Refusal> {
    let (x, y, experts) = (args.tensor("x")?, args.tensor("yOut")?, args.tensor("expertIdxOut")?);
    args.one_of("x", x, FLOATS)?;
    args.one_of("yOut", y, &[x.dtype, Dtype::F32])?;
    args.one_of("expertIdxOut", experts, &[Dtype::I32])?;
    args.ranked("x", x, 2, 3)?;
    let count = x.shape[x.rank() - 1];
    let k = usize::try_from(args.int("k")?).unwrap_or(0);
    if k == 0 || k > count {
        return Err(args.invalid("k", format!("= {} of {count} experts", args.int("k")?)));
    }
    let mut shape = x.shape.clone();
    shape[x.rank() - 1] = k;
    args.shaped("yOut", y, &shape)?;
    args.shaped("expertIdxOut", experts, &shape)?;
    Ok((x.clone(), count, k, y.clone(), experts.clone()))
}

/// Rows that are finished go to the expert behind the last.
fn finished(args: &Args, x: &Tensor) -> Result<Option<Tensor>, Refusal> {
    let finished = args.optional("finished")?;
    if let Some(finished) = finished {
        args.one_of("finished", finished, &[Dtype::Bool])?;
        args.shaped("finished", finished, &x.shape[..x.rank() - 1])?;
    }
    Ok(finished.cloned())
}

fn softmax_first(args: &Args) -> Result<Run, Refusal> {
    let rows = args.tensor("rowIdxOut")?.clone();
    args.one_of("rowIdxOut", &rows, &[Dtype::I32])?;
    args.shaped("rowIdxOut", &rows, &args.tensor("yOut")?.shape)?;
    let choice = softmax_gate(args, false, None)?;
    let k = usize::try_from(args.int("k")?).unwrap_or(1);
    run(move |memory| {
        choice(memory)?;
        let count = rows.numel() / k.max(1);
        let order: Vec<i64> = (0..rows.numel()).map(|i| (i % k * count + i / k) as i64).collect();
        rows.write_i64(memory, &order)
    })
}

fn softmax_either(args: &Args) -> Result<Run, Refusal> {
    let late = match args.int("renorm")? {
        0 => false,
        1 => true,
        mode => return Err(args.unknown_mode("renorm", mode)),
    };
    let all = match args.flag("outputSoftmaxResultFlag")? && !late {
        true => {
            let all = args.tensor("softmaxResultOutOptional")?;
            args.shaped("softmaxResultOut", all, &args.tensor("x")?.shape)?;
            args.one_of("softmaxResultOut", all, &[Dtype::F32])?;
            Some(all.clone())
        }
        false => None,
    };
    softmax_gate(args, late, all).map(Run::Alone)
}

/// The softmax before the choice, or of the chosen alone.
fn softmax_gate(args: &Args, late: bool, all: Option<Tensor>) -> Result<Body, Refusal> {
    let (x, count, k, y, experts) = arguments(args)?;
    let finished = finished(args, &x)?;
    Ok(Box::new(move |memory| {
        let row = x.read_f64(memory)?;
        let ended = finished.as_ref().map(|finished| finished.read_i64(memory)).transpose()?;
        let (mut weights, mut places, mut softmax) = (Vec::new(), Vec::new(), Vec::new());
        for (i, lane) in row.chunks(count).enumerate() {
            let shares = softmax_of(lane);
            let chosen = largest(lane, k);
            let of_chosen: Vec<f64> =
                chosen.iter().map(|&e| if late { lane[e] } else { shares[e] }).collect();
            weights.extend(if late { softmax_of(&of_chosen) } else { of_chosen });
            let over = ended.as_ref().is_some_and(|ended| ended[i] != 0);
            places.extend(chosen.iter().map(|&e| if over { count as i64 } else { e as i64 }));
            softmax.extend(shares);
        }
        y.write_f64(memory, &weights)?;
        experts.write_i64(memory, &places)?;
        all.iter().try_for_each(|all| all.write_f64(memory, &softmax))
    }))
}

/// Experts in groups: the best groups first, then the best experts in them. The bias counts for the choice only.
fn grouped(args: &Args) -> Result<Run, Refusal> {
    args.absent(&["inputIds", "tid2eid"])?;
    let (x, count, k, y, experts) = arguments(args)?;
    let size = |name: &str| args.int(name).map(|n| usize::try_from(n).unwrap_or(0));
    let (groups, keep) = (size("groupCount")?.max(1), size("kGroup")?.max(1));
    if !count.is_multiple_of(groups) || keep > groups || keep * (count / groups) < k {
        return Err(args.invalid(
            "groupCount",
            format!("= {groups}, {keep} of which are kept, for {k} of {count} experts"),
        ));
    }
    let pairs = match args.int("groupSelectMode")? {
        0 => false,
        1 => true,
        mode => return Err(args.unknown_mode("groupSelectMode", mode)),
    };
    if pairs && count / groups < 2 {
        return Err(args.invalid("groupSelectMode", "= 1 sums two experts of a group that has one"));
    }
    let (kind, renorm) = (args.int("normType")?, args.int("renorm")?);
    if kind == 2 && args.soc != Soc::Ascend950 {
        return Err(args.invalid("normType", format!("= 2 does not exist on {:?}", args.soc)));
    }
    if !(0..=2).contains(&kind) {
        return Err(args.unknown_mode("normType", kind));
    }
    if !(0..=1).contains(&renorm) {
        return Err(args.unknown_mode("renorm", renorm));
    }
    let bias = args.optional("bias")?.cloned();
    if let Some(bias) = &bias {
        args.shaped("bias", bias, &[count])?;
        args.one_of("bias", bias, &[x.dtype, Dtype::F32])?;
    }
    let all = match args.flag("outFlag")? {
        true => {
            let all = args.tensor("outOut")?;
            args.shaped("outOut", all, &x.shape)?;
            args.one_of("outOut", all, &[Dtype::F32])?;
            Some(all.clone())
        }
        false => None,
    };
    let (factor, epsilon) = (args.float("routedScalingFactor")?, args.float("eps")?);
    run(move |memory| {
        let row = x.read_f64(memory)?;
        let bias = match &bias {
            Some(bias) => bias.read_f64(memory)?,
            None => vec![0.0; count],
        };
        let (mut weights, mut places, mut scores_of_all) = (Vec::new(), Vec::new(), Vec::new());
        for lane in row.chunks(count) {
            let scores: Vec<f64> = match kind {
                0 => softmax_of(lane),
                1 => lane.iter().map(|&x| sigmoid(x)).collect(),
                _ => lane.iter().map(|&x| (x.max(0.0) + (-x.abs()).exp().ln_1p()).sqrt()).collect(),
            };
            let mut choice: Vec<f64> = scores.iter().zip(&bias).map(|(score, bias)| score + bias).collect();
            let width = count / groups;
            let worth: Vec<f64> = choice
                .chunks(width)
                .map(|group| largest(group, if pairs { 2 } else { 1 }).iter().map(|&e| group[e]).sum())
                .collect();
            let kept = largest(&worth, keep);
            for (group, scores) in choice.chunks_mut(width).enumerate() {
                if !kept.contains(&group) {
                    scores.fill(f64::NEG_INFINITY);
                }
            }
            let chosen = largest(&choice, k);
            let sum: f64 = chosen.iter().map(|&e| scores[e]).sum();
            let by = if kind == 0 && renorm == 0 { 1.0 } else { sum + epsilon };
            weights.extend(chosen.iter().map(|&e| scores[e] / by * factor));
            places.extend(chosen.iter().map(|&e| e as i64));
            scores_of_all.extend(scores);
        }
        y.write_f64(memory, &weights)?;
        experts.write_i64(memory, &places)?;
        all.iter().try_for_each(|all| all.write_f64(memory, &scores_of_all))
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, close};
    use super::*;

    #[test]
    fn the_best_experts_get_their_share() {
        let x = [0.0, 2f64.ln(), 4f64.ln(), 0.0];
        let base = |name: &str| Case::new(Soc::A3, name).input("x", Dtype::F32, &[1, 4], &x).int("k", 2);
        let outs =
            |case: Case| case.output("yOut", Dtype::F32, &[1, 2]).output("expertIdxOut", Dtype::I32, &[1, 2]);
        let case = outs(base("MoeGatingTopKSoftmax")).output("rowIdxOut", Dtype::I32, &[1, 2]).done();
        close(&case.read("yOut"), &[0.5, 0.25], 1e-6);
        assert_eq!((case.read("expertIdxOut"), case.read("rowIdxOut")), (vec![2.0, 1.0], vec![0.0, 1.0]));
        let late = outs(base("MoeGatingTopKSoftmaxV2")).int("renorm", 1).done();
        close(&late.read("yOut"), &[2.0 / 3.0, 1.0 / 3.0], 1e-6);
        let ended =
            outs(base("MoeGatingTopKSoftmaxV2")).input("finishedOptional", Dtype::Bool, &[1], &[1.0]).done();
        assert_eq!(ended.read("expertIdxOut"), [4.0, 4.0]);
    }

    #[test]
    fn groups_are_chosen_before_experts_and_bias_weighs_nothing() {
        // Sigmoids: group 0 has the best expert, group 1 the best pair.
        let logit = |p: f64| (p / (1.0 - p)).ln();
        let x = [0.9, 0.1, 0.6, 0.5].map(logit);
        let case = |mode, bias: &[f64; 4]| {
            let case = Case::new(Soc::A3, "MoeGatingTopK")
                .input("x", Dtype::F32, &[1, 4], &x)
                .int("k", 2)
                .int("kGroup", 1);
            let case = case
                .int("groupCount", 2)
                .int("groupSelectMode", mode)
                .int("normType", 1)
                .float("routedScalingFactor", 2.0);
            let case = case.input("biasOptional", Dtype::F32, &[4], bias);
            case.output("yOut", Dtype::F32, &[1, 2]).output("expertIdxOut", Dtype::I32, &[1, 2]).done()
        };
        assert_eq!(case(0, &[0.0; 4]).read("expertIdxOut"), [0.0, 1.0]);
        let pair = case(1, &[0.0; 4]);
        assert_eq!(pair.read("expertIdxOut"), [2.0, 3.0]);
        close(&pair.read("yOut"), &[2.0 * 0.6 / 1.1, 2.0 * 0.5 / 1.1], 1e-6);
        let biased = case(1, &[0.0, 5.0, 0.0, 0.0]);
        assert_eq!(biased.read("expertIdxOut"), [1.0, 0.0]);
        close(&biased.read("yOut"), &[0.2, 1.8], 1e-6);
    }
}
