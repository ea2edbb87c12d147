//! Tokens brought into the order of their experts, and back.

use super::quantize::quantize_rows;
use super::{Args, FLOATS, Refusal, Run, run};
use crate::view::{Dtype, Fault, Memory, Tensor};

operators! {
    MoeInitRoutingV2(x: T, expertIdx: T, activeNumOptional: I64, expertCapacityOptional: I64, expertNumOptional: I64, dropPadModeOptional: I64, expertTokensCountOrCumsumFlagOptional: I64, expertTokensBeforeCapacityFlagOptional: B, expandedXOut: O, expandedRowIdxOut: O, expertTokensCountOrCumsumOutOptional: O, expertTokensBeforeCapacityOutOptional: O) = init;
    MoeInitRoutingV3(x: T, expertIdx: T, scaleOptional: T, offsetOptional: T, activeNum: I64, expertCapacity: I64, expertNum: I64, dropPadMode: I64, expertTokensNumType: I64, expertTokensNumFlag: B, quantMode: I64, activeExpertRangeOptional: IA, rowIdxType: I64, expandedXOut: O, expandedRowIdxOut: O, expertTokensCountOrCumsumOut: O, expandedScaleOut: O) = init_range;
    MoeInitRoutingV4(x: T, expertIdx: T, scaleOptional: T, offsetOptional: T, activeNumOptional: T, topkWeightOptional: T, expertCapacity: I64, expertNum: I64, dropPadMode: I64, expertTokensNumType: I64, expertTokensNumFlag: B, quantMode: I64, activeExpertRangeOptional: IA, rowIdxType: I64, expandedXOut: O, expandedRowIdxOut: O, expertTokensCountOrCumsumOut: O, expandedScaleOut: O, expandedTopkWeightOut: O) = init_range;
    MoeFinalizeRoutingV2(expandedX: T, expandedRowIdx: T, x1Optional: T, x2Optional: T, biasOptional: T, scalesOptional: T, expertIdxOptional: T, dropPadMode: I64, out: O) = finalize;
    MoeComputeExpertTokens(sortedExperts: T, numExperts: I64, out: O) = count;
    MoeTokenPermute(tokens: T, indices: T, numOutTokens: I64, paddedMode: B, permuteTokensOut: O, sortedIndicesOut: O) = permute;
    MoeTokenUnpermute(permutedTokens: T, sortedIndices: T, probsOptional: T, paddedMode: B, restoreShapeOptional: IA, out: O) = unpermute;
}

/// Places of `experts` in the order of their experts, equals in their own order.
fn by_expert(experts: &[i64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..experts.len()).collect();
    order.sort_by_key(|&place| experts[place]);
    order
}

/// Tokens and the experts of each: x is [n, h], expertIdx [n, k] of int32.
fn routed(args: &Args) -> Result<(Tensor, Tensor, usize), Refusal> {
    let (x, experts) = (args.tensor("x")?, args.tensor("expertIdx")?);
    args.ranked("x", x, 2, 2)?;
    args.ranked("expertIdx", experts, 2, 2)?;
    args.one_of("x", x, &[FLOATS, &[Dtype::I8]].concat())?;
    args.one_of("expertIdx", experts, &[Dtype::I32])?;
    if experts.shape[0] != x.shape[0] {
        return Err(
            args.invalid("expertIdx", format!("has {} rows for {} tokens", experts.shape[0], x.shape[0]))
        );
    }
    Ok((x.clone(), experts.clone(), experts.shape[1]))
}

fn experts_of(args: &Args, name: &str) -> Result<usize, Refusal> {
    let count = args.int(name)?;
    usize::try_from(count).map_err(|_| args.invalid(name, format!("= {count}")))
}

/// Experts in range, or the reason why the kernel stops.
fn checked(operator: &str, experts: &Tensor, count: usize, memory: &dyn Memory) -> Result<Vec<i64>, Fault> {
    let experts = experts.read_i64(memory)?;
    match experts.iter().find(|&&expert| count > 0 && !(0..count as i64).contains(&expert)) {
        Some(bad) => Err(Fault::exception(format!("aclnn{operator}: expert {bad} of {count}"))),
        None => Ok(experts),
    }
}

fn histogram(experts: impl Iterator<Item = i64>, count: usize) -> Vec<i64> {
    let mut counts = vec![0; count];
    experts.for_each(|expert| counts[expert as usize] += 1);
    counts
}

fn running(counts: &[i64]) -> Vec<i64> {
    let mut sum = 0;
    counts
        .iter()
        .map(|count| {
            sum += count;
            sum
        })
        .collect()
}

fn init(args: &Args) -> Result<Run, Refusal> {
    let (x, experts, k) = routed(args)?;
    let (count, capacity) =
        (experts_of(args, "expertNumOptional")?, experts_of(args, "expertCapacityOptional")?);
    let (out, rows) = (args.tensor("expandedXOut")?.clone(), args.tensor("expandedRowIdxOut")?.clone());
    let (n, h) = (x.shape[0], x.shape[1]);
    args.one_of("expandedXOut", &out, &[x.dtype])?;
    args.one_of("expandedRowIdxOut", &rows, &[Dtype::I32])?;
    args.shaped("expandedRowIdxOut", &rows, &[n * k])?;
    let pads = match args.int("dropPadModeOptional")? {
        0 => false,
        1 if count > 0 && capacity > 0 => true,
        1 => return Err(args.invalid("dropPadMode", "= 1 needs expertNum and expertCapacity")),
        mode => return Err(args.unknown_mode("dropPadMode", mode)),
    };
    let active = match experts_of(args, "activeNumOptional")? {
        0 => n * k,
        active => active.min(n * k),
    };
    args.shaped("expandedXOut", &out, &if pads { vec![count, capacity, h] } else { vec![active, h] })?;
    let flag = args.int("expertTokensCountOrCumsumFlagOptional")?;
    let tokens = match flag {
        0 => None,
        1 | 2 if !pads => Some(counter(args, "expertTokensCountOrCumsumOutOptional", count)?),
        1 | 2 => None,
        mode => return Err(args.unknown_mode("expertTokensCountOrCumsumFlag", mode)),
    };
    let before = match pads && args.flag("expertTokensBeforeCapacityFlagOptional")? {
        true => Some(counter(args, "expertTokensBeforeCapacityOutOptional", count)?),
        false => None,
    };
    let operator = args.operator;
    run(move |memory| {
        let chosen = checked(operator, &experts, count, memory)?;
        let (bits, order) = (x.read_bits(memory)?, by_expert(&chosen));
        let mut expanded = vec![0; out.numel()];
        let mut places = vec![-1; n * k];
        let mut filled = vec![0; count];
        for (at, &source) in order.iter().enumerate() {
            let place = if pads {
                let expert = chosen[source] as usize;
                filled[expert] += 1;
                if filled[expert] > capacity { continue } else { expert * capacity + filled[expert] - 1 }
            } else {
                at
            };
            places[source] = place as i64;
            if pads || place < active {
                expanded[place * h..][..h].copy_from_slice(&bits[source / k * h..][..h]);
            }
        }
        out.write_bits(memory, &expanded)?;
        rows.write_i64(memory, &places)?;
        if let Some(tokens) = &tokens {
            let counts = histogram(chosen.iter().copied(), count);
            tokens.write_i64(memory, &if flag == 1 { running(&counts) } else { counts })?;
        }
        before
            .iter()
            .try_for_each(|before| before.write_i64(memory, &histogram(chosen.iter().copied(), count)))
    })
}

fn counter(args: &Args, name: &str, count: usize) -> Result<Tensor, Refusal> {
    let out = args.tensor(name)?;
    args.one_of(name, out, &[Dtype::I32])?;
    args.shaped(name, out, &[count])?;
    Ok(out.clone())
}

/// The later version: experts of a range only, counts of 64 bits, rows quantised on the way.
fn init_range(args: &Args) -> Result<Run, Refusal> {
    let (x, experts, k) = routed(args)?;
    let count = experts_of(args, "expertNum")?;
    let (n, h) = (x.shape[0], x.shape[1]);
    match args.int("dropPadMode")? {
        0 => {}
        mode => return Err(args.unknown_mode("dropPadMode", mode)),
    }
    let range = match args.optional_ints("activeExpertRange")? {
        None | Some([]) => 0..count as i64,
        Some(&[start, end]) if 0 <= start && start < end && end <= count as i64 => start..end,
        Some(range) => return Err(args.invalid("activeExpertRange", format!("{range:?} of {count} experts"))),
    };
    let quantizes = match args.int("quantMode")? {
        -1 => false,
        1 => true,
        mode => return Err(args.unknown_mode("quantMode", mode)),
    };
    args.absent(&["offset"])?;
    let scale = args.optional("scale")?.cloned();
    if quantizes && scale.is_some() {
        return Err(args.invalid("scale", "smooths a dynamic quantisation, which is not simulated"));
    }
    let scatters = match args.int("rowIdxType")? {
        0 => false,
        1 => true,
        mode => return Err(args.unknown_mode("rowIdxType", mode)),
    };
    let (out, rows) = (args.tensor("expandedXOut")?.clone(), args.tensor("expandedRowIdxOut")?.clone());
    args.one_of("expandedXOut", &out, &[if quantizes { Dtype::I8 } else { x.dtype }])?;
    args.one_of("expandedRowIdxOut", &rows, &[Dtype::I32])?;
    args.shaped("expandedRowIdxOut", &rows, &[n * k])?;
    // The fourth version has it on the device.
    let on_device = args.operator == "MoeInitRoutingV4";
    if on_device {
        args.absent(&["activeNum", "topkWeight"])?;
    }
    let active = match if on_device { 0 } else { args.int("activeNum")? } {
        active if active > 0 => (active as usize).min(n * k),
        _ => n * k,
    };
    args.shaped("expandedXOut", &out, &[active, h])?;
    let width = (range.end - range.start) as usize;
    let kind = args.int("expertTokensNumType")?;
    let tokens = match (args.flag("expertTokensNumFlag")?, kind) {
        (false, _) => None,
        (true, 0..=2) => {
            let tokens = args.tensor("expertTokensCountOrCumsumOut")?;
            args.one_of("expertTokensCountOrCumsumOut", tokens, &[Dtype::I64])?;
            args.shaped(
                "expertTokensCountOrCumsumOut",
                tokens,
                &if kind == 2 { vec![count, 2] } else { vec![width] },
            )?;
            Some(tokens.clone())
        }
        (true, mode) => return Err(args.unknown_mode("expertTokensNumType", mode)),
    };
    let scales = match quantizes || scale.is_some() {
        true => {
            let scales = args.tensor("expandedScaleOut")?;
            args.one_of("expandedScaleOut", scales, &[Dtype::F32])?;
            args.shaped("expandedScaleOut", scales, &[active])?;
            Some(scales.clone())
        }
        false => None,
    };
    if let Some(scale) = &scale {
        args.one_of("scale", scale, &[Dtype::F32])?;
        args.shaped("scale", scale, &[n])?;
    }
    let operator = args.operator;
    run(move |memory| {
        let chosen = checked(operator, &experts, count, memory)?;
        let order: Vec<usize> =
            by_expert(&chosen).into_iter().filter(|&source| range.contains(&chosen[source])).collect();
        let mut places = vec![-1; n * k];
        for (at, &source) in order.iter().enumerate() {
            if scatters { places[at] = source as i64 } else { places[source] = at as i64 }
        }
        rows.write_i64(memory, &places)?;
        let kept = &order[..order.len().min(active)];
        let part = out.narrow(0, 0, kept.len(), 1);
        if quantizes {
            let values = x.read_f64(memory)?;
            let rows: Vec<f64> =
                kept.iter().flat_map(|&source| values[source / k * h..][..h].iter().copied()).collect();
            let (codes, scale) = quantize_rows(&rows, h);
            part.write_f64(memory, &codes)?;
            scales.iter().try_for_each(|out| out.narrow(0, 0, kept.len(), 1).write_f64(memory, &scale))?;
        } else {
            let bits = x.read_bits(memory)?;
            let rows: Vec<u64> =
                kept.iter().flat_map(|&source| bits[source / k * h..][..h].iter().copied()).collect();
            part.write_bits(memory, &rows)?;
            if let (Some(scale), Some(scales)) = (&scale, &scales) {
                let scale = scale.read_f64(memory)?;
                let row: Vec<f64> = kept.iter().map(|&source| scale[source / k]).collect();
                scales.narrow(0, 0, kept.len(), 1).write_f64(memory, &row)?;
            }
        }
        let Some(tokens) = &tokens else { return Ok(()) };
        let counts = histogram(order.iter().map(|&source| chosen[source] - range.start), width);
        match kind {
            0 => tokens.write_i64(memory, &running(&counts)),
            1 => tokens.write_i64(memory, &counts),
            // Pairs of expert and count, those without tokens left out; a pair of zeros ends the list.
            _ => {
                let mut pairs: Vec<i64> = (range.start..)
                    .zip(&counts)
                    .filter(|(_, count)| **count > 0)
                    .flat_map(|(expert, count)| [expert, *count])
                    .collect();
                pairs.resize(2 * tokens.shape[0], 0);
                tokens.write_i64(memory, &pairs)
            }
        }
    })
}

/// out = x1 + x2 + Σ scale · (expanded row + its expert's bias); rows that were dropped give nothing.
fn finalize(args: &Args) -> Result<Run, Refusal> {
    let (expanded, rows, out) =
        (args.tensor("expandedX")?, args.tensor("expandedRowIdx")?.clone(), args.tensor("out")?.clone());
    args.one_of("expandedX", expanded, FLOATS)?;
    args.one_of("out", &out, &[expanded.dtype])?;
    args.one_of("expandedRowIdx", &rows, &[Dtype::I32])?;
    args.ranked("out", &out, 2, 2)?;
    let mode = args.int("dropPadMode")?;
    let by_column = match mode {
        0 | 1 => true,
        2 | 3 => false,
        mode => return Err(args.unknown_mode("dropPadMode", mode)),
    };
    let rank = if mode % 2 == 0 { 2 } else { 3 };
    args.ranked("expandedX", expanded, rank, rank)?;
    let (n, h) = (out.shape[0], out.shape[1]);
    if expanded.shape[rank - 1] != h || n == 0 && rows.numel() > 0 || n > 0 && !rows.numel().is_multiple_of(n)
    {
        return Err(args.invalid(
            "out",
            format!("{:?} does not fit expandedX {:?} and {} rows", out.shape, expanded.shape, rows.numel()),
        ));
    }
    let k = rows.numel() / n.max(1);
    let mut addends = Vec::new();
    for name in ["x1", "x2"] {
        if let Some(addend) = args.optional(name)? {
            args.shaped(name, addend, &out.shape)?;
            args.one_of(name, addend, &[expanded.dtype])?;
            addends.push(addend.clone());
        }
    }
    let scales = args.optional("scales")?.cloned();
    if let Some(scales) = &scales {
        args.shaped("scales", scales, &[n, k])?;
        args.one_of("scales", scales, &[expanded.dtype, Dtype::F32])?;
    } else if k != 1 {
        return Err(args.invalid("scales", format!("are needed where a token has {k} experts")));
    }
    let bias = match (args.optional("bias")?, args.optional("expertIdx")?) {
        (None, _) => None,
        (Some(bias), Some(experts)) => {
            args.ranked("bias", bias, 2, 2)?;
            args.shaped("expertIdx", experts, &[n, k])?;
            args.one_of("bias", bias, &[expanded.dtype])?;
            if bias.shape[1] != h {
                return Err(args.invalid("bias", format!("has shape {:?} for rows of {h}", bias.shape)));
            }
            Some((bias.clone(), experts.clone()))
        }
        (Some(_), None) => return Err(args.invalid("expertIdx", "is needed with bias")),
    };
    let (expanded, operator) = (expanded.clone(), args.operator);
    run(move |memory| {
        let (values, rows) = (expanded.read_f64(memory)?, rows.read_i64(memory)?);
        let scales = scales.as_ref().map(|scales| scales.read_f64(memory)).transpose()?;
        let bias = match &bias {
            Some((bias, experts)) => {
                Some((bias.read_f64(memory)?, checked(operator, experts, bias.shape[0], memory)?))
            }
            None => None,
        };
        let mut sums = vec![0.0; n * h];
        for addend in &addends {
            sums.iter_mut().zip(addend.read_f64(memory)?).for_each(|(sum, x)| *sum += x);
        }
        for i in 0..n {
            for j in 0..k {
                let at = rows[if by_column { j * n + i } else { i * k + j }];
                if at == -1 {
                    continue;
                }
                let place = usize::try_from(at).ok().filter(|place| (place + 1) * h <= values.len());
                let place = place.ok_or_else(|| {
                    Fault::exception(format!("aclnn{operator}: row {at} is outside expandedX"))
                })?;
                let scale = scales.as_ref().map_or(1.0, |scales| scales[i * k + j]);
                for (e, sum) in sums[i * h..][..h].iter_mut().enumerate() {
                    let shift = bias
                        .as_ref()
                        .map_or(0.0, |(bias, experts)| bias[experts[i * k + j] as usize * h + e]);
                    *sum += scale * (values[place * h + e] + shift);
                }
            }
        }
        out.write_f64(memory, &sums)
    })
}

/// Running counts of tokens per expert.
fn count(args: &Args) -> Result<Run, Refusal> {
    let (experts, out, count) =
        (args.tensor("sortedExperts")?.clone(), args.tensor("out")?.clone(), experts_of(args, "numExperts")?);
    args.one_of("sortedExperts", &experts, &[Dtype::I32])?;
    args.one_of("out", &out, &[Dtype::I32])?;
    args.shaped("out", &out, &[count])?;
    let operator = args.operator;
    run(move |memory| {
        let experts = checked(operator, &experts, count, memory)?;
        out.write_i64(memory, &running(&histogram(experts.into_iter(), count)))
    })
}

fn padded(args: &Args) -> Result<(), Refusal> {
    if args.flag("paddedMode")? { Err(args.unknown_mode("paddedMode", true)) } else { Ok(()) }
}

fn permute(args: &Args) -> Result<Run, Refusal> {
    padded(args)?;
    let (tokens, indices) = (args.tensor("tokens")?.clone(), args.tensor("indices")?.clone());
    let (out, sorted) = (args.tensor("permuteTokensOut")?.clone(), args.tensor("sortedIndicesOut")?.clone());
    args.ranked("tokens", &tokens, 2, 2)?;
    args.ranked("indices", &indices, 1, 2)?;
    args.one_of("indices", &indices, super::INDICES)?;
    args.one_of("permuteTokensOut", &out, &[tokens.dtype])?;
    args.one_of("sortedIndicesOut", &sorted, &[Dtype::I32])?;
    if indices.shape[0] != tokens.shape[0] {
        return Err(
            args.invalid("indices", format!("has {} rows for {} tokens", indices.shape[0], tokens.shape[0]))
        );
    }
    let (k, h, all) = (indices.shape.get(1).copied().unwrap_or(1), tokens.shape[1], indices.numel());
    let keep = match args.int("numOutTokens")? {
        0 => all,
        n if n > 0 => (n as usize).min(all),
        n => (all as i64 + n).max(0) as usize,
    };
    args.shaped("permuteTokensOut", &out, &[keep, h])?;
    args.shaped("sortedIndicesOut", &sorted, &[all])?;
    run(move |memory| {
        let (bits, order) = (tokens.read_bits(memory)?, by_expert(&indices.read_i64(memory)?));
        let mut places = vec![0; all];
        order.iter().enumerate().for_each(|(at, &source)| places[source] = at as i64);
        let rows: Vec<u64> =
            order[..keep].iter().flat_map(|&source| bits[source / k * h..][..h].iter().copied()).collect();
        out.write_bits(memory, &rows)?;
        sorted.write_i64(memory, &places)
    })
}

fn unpermute(args: &Args) -> Result<Run, Refusal> {
    padded(args)?;
    let (tokens, sorted, out) = (
        args.tensor("permutedTokens")?.clone(),
        args.tensor("sortedIndices")?.clone(),
        args.tensor("out")?.clone(),
    );
    args.ranked("permutedTokens", &tokens, 2, 2)?;
    args.one_of("permutedTokens", &tokens, FLOATS)?;
    args.one_of("sortedIndices", &sorted, &[Dtype::I32])?;
    args.one_of("out", &out, &[tokens.dtype])?;
    let probs = args.optional("probs")?.cloned();
    let k = probs.as_ref().map_or(1, |probs| probs.shape.get(1).copied().unwrap_or(1));
    let h = tokens.shape[1];
    args.shaped("out", &out, &[sorted.numel() / k.max(1), h])?;
    if let Some(probs) = &probs
        && probs.numel() != sorted.numel()
    {
        return Err(
            args.invalid("probs", format!("has shape {:?} for {} indices", probs.shape, sorted.numel()))
        );
    }
    let operator = args.operator;
    run(move |memory| {
        let (values, places) = (tokens.read_f64(memory)?, sorted.read_i64(memory)?);
        let probs = probs.as_ref().map(|probs| probs.read_f64(memory)).transpose()?;
        let mut sums = vec![0.0; out.numel()];
        for (i, &place) in places.iter().enumerate() {
            // Tokens that were not kept give nothing.
            let place = usize::try_from(place)
                .map_err(|_| Fault::exception(format!("aclnn{operator}: index {place}")))?;
            let Some(row) = values.get(place * h..(place + 1) * h) else { continue };
            let weight = probs.as_ref().map_or(1.0, |probs| probs[i]);
            sums[i / k * h..][..h].iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
        }
        out.write_f64(memory, &sums)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, close};
    use super::*;

    const X: [f64; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    const EXPERTS: [f64; 6] = [2.0, 0.0, 0.0, 1.0, 2.0, 1.0];

    #[test]
    fn tokens_go_to_their_experts_and_come_back_weighted() {
        let case = Case::new(Soc::A3, "MoeInitRoutingV2").input("x", Dtype::F16, &[3, 2], &X).input(
            "expertIdx",
            Dtype::I32,
            &[3, 2],
            &EXPERTS,
        );
        let case = case.int("expertNumOptional", 3).int("expertTokensCountOrCumsumFlagOptional", 1);
        let case =
            case.output("expandedXOut", Dtype::F16, &[6, 2]).output("expandedRowIdxOut", Dtype::I32, &[6]);
        let case = case.output("expertTokensCountOrCumsumOutOptional", Dtype::I32, &[3]).done();
        // In order of experts: token 0 and 1 for expert 0, 1 and 2 for expert 1, 0 and 2 for expert 2.
        assert_eq!(case.read("expandedXOut"), [1.0, 2.0, 3.0, 4.0, 3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
        assert_eq!(case.read("expandedRowIdxOut"), [4.0, 0.0, 1.0, 2.0, 5.0, 3.0]);
        assert_eq!(case.read("expertTokensCountOrCumsumOutOptional"), [2.0, 4.0, 6.0]);
        let (rows, places) = (case.read("expandedXOut"), case.read("expandedRowIdxOut"));
        let case = Case::new(Soc::A3, "MoeFinalizeRoutingV2")
            .input("expandedX", Dtype::F16, &[6, 2], &rows)
            .int("dropPadMode", 2);
        let case = case.input("expandedRowIdx", Dtype::I32, &[6], &places).input(
            "scalesOptional",
            Dtype::F16,
            &[3, 2],
            &[0.5; 6],
        );
        close(&case.output("out", Dtype::F16, &[3, 2]).done().read("out"), &X, 1e-6);
    }

    #[test]
    fn an_expert_beyond_its_capacity_drops_tokens() {
        let case = Case::new(Soc::A3, "MoeInitRoutingV2").input("x", Dtype::F16, &[3, 2], &X).input(
            "expertIdx",
            Dtype::I32,
            &[3, 1],
            &[1.0, 1.0, 0.0],
        );
        let case =
            case.int("expertNumOptional", 2).int("expertCapacityOptional", 1).int("dropPadModeOptional", 1);
        let case = case
            .output("expandedXOut", Dtype::F16, &[2, 1, 2])
            .output("expandedRowIdxOut", Dtype::I32, &[3])
            .done();
        assert_eq!(
            (case.read("expandedXOut"), case.read("expandedRowIdxOut")),
            (vec![5.0, 6.0, 1.0, 2.0], vec![1.0, -1.0, 0.0])
        );
    }

    #[test]
    fn a_range_of_experts_takes_only_its_tokens() {
        let case = |quant, scatter| {
            let case = Case::new(Soc::A3, "MoeInitRoutingV3").input("x", Dtype::F16, &[3, 2], &X).input(
                "expertIdx",
                Dtype::I32,
                &[3, 2],
                &EXPERTS,
            );
            let case = case
                .int("expertNum", 3)
                .ints("activeExpertRangeOptional", &[1, 3])
                .int("quantMode", quant)
                .int("rowIdxType", scatter);
            let case = case.flag("expertTokensNumFlag", true).int("expertTokensNumType", 1).output(
                "expandedRowIdxOut",
                Dtype::I32,
                &[6],
            );
            let case = case.output("expertTokensCountOrCumsumOut", Dtype::I64, &[2]).output(
                "expandedScaleOut",
                Dtype::F32,
                &[6],
            );
            case.output("expandedXOut", if quant == 1 { Dtype::I8 } else { Dtype::F16 }, &[6, 2]).done()
        };
        let plain = case(-1, 0);
        assert_eq!(plain.read("expandedXOut")[..8], [3.0, 4.0, 5.0, 6.0, 1.0, 2.0, 5.0, 6.0]);
        assert_eq!(plain.read("expandedRowIdxOut"), [2.0, -1.0, -1.0, 0.0, 3.0, 1.0]);
        assert_eq!(plain.read("expertTokensCountOrCumsumOut"), [2.0, 2.0]);
        let quantized = case(1, 1);
        assert_eq!(quantized.read("expandedRowIdxOut"), [3.0, 5.0, 0.0, 4.0, -1.0, -1.0]);
        assert_eq!(quantized.read("expandedXOut")[..2], [95.0, 127.0]);
        close(&quantized.read("expandedScaleOut")[..1], &[4.0 / 127.0], 1e-6);
    }

    #[test]
    fn permuted_tokens_return() {
        let case = Case::new(Soc::A2, "MoeTokenPermute").input("tokens", Dtype::F16, &[3, 2], &X).input(
            "indices",
            Dtype::I32,
            &[3, 2],
            &EXPERTS,
        );
        let case = case
            .output("permuteTokensOut", Dtype::F16, &[6, 2])
            .output("sortedIndicesOut", Dtype::I32, &[6])
            .done();
        let (tokens, sorted) = (case.read("permuteTokensOut"), case.read("sortedIndicesOut"));
        let case =
            Case::new(Soc::A2, "MoeTokenUnpermute").input("permutedTokens", Dtype::F16, &[6, 2], &tokens);
        let case = case.input("sortedIndices", Dtype::I32, &[6], &sorted).input(
            "probsOptional",
            Dtype::F16,
            &[3, 2],
            &[0.25, 0.75, 0.5, 0.5, 1.0, 0.0],
        );
        close(&case.output("out", Dtype::F16, &[3, 2]).done().read("out"), &X, 1e-6);
        let counts = Case::new(Soc::A2, "MoeComputeExpertTokens").input(
            "sortedExperts",
            Dtype::I32,
            &[4],
            &[0.0, 0.0, 2.0, 2.0],
        );
        assert_eq!(
            counts.int("numExperts", 3).output("out", Dtype::I32, &[3]).done().read("out"),
            [2.0, 2.0, 4.0]
        );
    }
}
