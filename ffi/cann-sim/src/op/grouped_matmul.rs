//! Products of groups of rows, each with a weight of its own: the experts' layers.

use super::gather::resolve;
use super::matmul::multiply;
use super::unary::{gelu_tanh, sigmoid, silu};
use super::weight_quant::{Weight, unpacked};
use super::{Args, FLOATS, Refusal, Run, run};
use crate::view::{Dtype, Fault, Format, Memory, Tensor};

operators! {
    GroupedMatmulV3(x: TL, weight: TL, biasOptional: TL, scaleOptional: TL, offsetOptional: TL, antiquantScaleOptional: TL, antiquantOffsetOptional: TL, groupListOptional: T, splitItem: I64, groupType: I64, y: OL) = grouped;
    GroupedMatmulV4(x: TL, weight: TL, biasOptional: TL, scaleOptional: TL, offsetOptional: TL, antiquantScaleOptional: TL, antiquantOffsetOptional: TL, perTokenScaleOptional: TL, groupListOptional: T, activationInputOptional: TL, activationQuantScaleOptional: TL, activationQuantOffsetOptional: TL, splitItem: I64, groupType: I64, groupListType: I64, actType: I64, out: OL, activationFeatureOutOptional: OL, dynQuantScaleOutOptional: OL) = grouped;
    GroupedMatmulWeightNz(x: TL, weight: TL, biasOptional: TL, scaleOptional: TL, offsetOptional: TL, antiquantScaleOptional: TL, antiquantOffsetOptional: TL, perTokenScaleOptional: TL, groupListOptional: T, activationInputOptional: TL, activationQuantScaleOptional: TL, activationQuantOffsetOptional: TL, splitItem: I64, groupType: I64, groupListType: I64, actType: I64, tuningConfigOptional: IA, quantGroupSize: I64, out: OL, activationFeatureOutOptional: OL, dynQuantScaleOutOptional: OL) = in_blocks;
    GroupedMatmulV5(x: TL, weight: TL, biasOptional: TL, scaleOptional: TL, offsetOptional: TL, antiquantScaleOptional: TL, antiquantOffsetOptional: TL, perTokenScaleOptional: TL, groupListOptional: T, activationInputOptional: TL, activationQuantScaleOptional: TL, activationQuantOffsetOptional: TL, splitItem: I64, groupType: I64, groupListType: I64, actType: I64, tuningConfigOptional: IA, out: OL, activationFeatureOutOptional: OL, dynQuantScaleOutOptional: OL) = grouped;
}

/// How the factors of a group become numbers.
enum Factors {
    /// Floats as they are.
    Float(Tensor),
    /// Codes that are scaled by column, and by row, after they were multiplied.
    Codes { weight: Tensor, scale: Option<Tensor> },
    /// Codes expanded to the activations' type.
    Expanded(Weight),
}

struct Group {
    factors: Factors,
    bias: Option<Tensor>,
}

/// Element `e` of a tensor's first dimension.
fn pick(tensor: &Tensor, e: usize) -> Tensor {
    let mut view = tensor.narrow(0, e, 1, 1);
    view.shape.remove(0);
    view.strides.remove(0);
    // Blocks of the fractal layout follow one another, matrix after matrix.
    if tensor.format == crate::view::Format::FractalNz {
        let matrix: usize = view.fractal_storage().iter().product();
        view.offset = tensor.offset + e * matrix;
    }
    view
}

/// Member `e` of a list of `count`, or of one tensor that holds all.
fn member(
    args: &Args,
    name: &str,
    list: &[Tensor],
    e: usize,
    count: usize,
    stacked: bool,
) -> Result<Tensor, Refusal> {
    match list {
        [all] if stacked && all.shape.first() == Some(&count) => Ok(pick(all, e)),
        list if list.len() == count && !stacked => Ok(list[e].clone()),
        // A single group's parameters may come without the groups' dimension.
        [one] if count == 1 => Ok(one.clone()),
        list => Err(args.invalid(name, format!("has {} members for {count} groups", list.len()))),
    }
}

/// The same with weights in fractal blocks, which is what this version is for.
fn in_blocks(args: &Args) -> Result<Run, Refusal> {
    if let Some(plain) = args.tensors("weight")?.iter().find(|weight| weight.format != Format::FractalNz) {
        return Err(args.invalid("weight", format!("of shape {:?} is not FRACTAL_NZ", plain.shape)));
    }
    match args.int("quantGroupSize")? {
        0 => grouped(args),
        size => Err(args.unknown_mode("quantGroupSize", size)),
    }
}

fn grouped(args: &Args) -> Result<Run, Refusal> {
    args.absent(&["offset", "activationInput", "activationQuantScale", "activationQuantOffset"])?;
    args.absent(&["activationFeatureOut", "dynQuantScaleOut"])?;
    let (xs, weights) = (args.tensors("x")?, args.tensors("weight")?);
    let outs = args.tensors(if args.operator == "GroupedMatmulV3" { "y" } else { "out" })?;
    let (split, kind) = (args.int("splitItem")?, args.int("groupType")?);
    if !(0..=3).contains(&split) {
        return Err(args.unknown_mode("splitItem", split));
    }
    let (Some(first), Some(matrix)) = (xs.first(), weights.first()) else {
        return Err(args.invalid("x", "or weight is an empty list"));
    };
    let stacked = weights.len() == 1 && matrix.rank() == 3;
    let count = if stacked { matrix.shape[0] } else { weights.len() };
    if count > if stacked { 1024 } else { 128 } {
        return Err(args.invalid("weight", format!("has {count} groups, more than the operator takes")));
    }
    match kind {
        -1 if xs.len() == count && outs.len() == count && split < 2 => {}
        0 if xs.len() == 1 && outs.len() == 1 && split >= 2 => {}
        -1 | 0 => {
            let lists = (xs.len(), count, outs.len());
            return Err(args.invalid(
                "groupType",
                format!("= {kind} with splitItem {split} does not go with {lists:?} tensors"),
            ));
        }
        kind => return Err(args.unknown_mode("groupType", kind)),
    }
    let activation: fn(f64) -> f64 = match args.int_or("actType", 0)? {
        0 => |x| x,
        1 => |x| x.max(0.0),
        2 => gelu_tanh,
        4 => |x| x * sigmoid(1.702 * x),
        5 => silu,
        mode => return Err(args.unknown_mode("actType", mode)),
    };
    let quantized = first.dtype == Dtype::I8 || first.dtype == Dtype::I4;
    args.one_of("x", first, &[FLOATS, &[Dtype::I8, Dtype::I4]].concat())?;
    let lists = |name: &str| args.optional_tensors(name).map(|list| list.filter(|list| !list.is_empty()));
    let (scale, bias) = (lists("scale")?, lists("bias")?);
    let (anti_scale, anti_offset) = (lists("antiquantScale")?, lists("antiquantOffset")?);
    let mut groups = Vec::new();
    for e in 0..count {
        let weight = unpacked(&member(args, "weight", weights, e, count, stacked)?);
        args.ranked("weight", &weight, 2, 2)?;
        let n = weight.shape[1];
        let part = |name: &str, list: Option<&[Tensor]>| {
            list.map(|list| member(args, name, list, e, count, stacked || list.len() == 1)).transpose()
        };
        let factors = match part("antiquantScale", anti_scale)? {
            Some(scale) => {
                args.one_of("weight", &weight, &[Dtype::I8, Dtype::I4, Dtype::F8E4M3, Dtype::F8E5M2])?;
                args.one_of("antiquantScale", &scale, &[first.dtype])?;
                let rows = if scale.rank() == 2 { scale.shape[0].max(1) } else { 1 };
                if !weight.shape[0].is_multiple_of(rows) {
                    let what = format!("has {rows} groups for {} rows", weight.shape[0]);
                    return Err(args.invalid("antiquantScale", what));
                }
                let group = if rows > 1 { weight.shape[0] / rows } else { 0 };
                let offset = part("antiquantOffset", anti_offset)?;
                if let Some(offset) = &offset {
                    args.one_of("antiquantOffset", offset, &[scale.dtype])?;
                }
                let names = ["weight", "antiquantScale", "antiquantOffset"];
                Factors::Expanded(Weight::new(args, names, weight.clone(), &scale, offset.as_ref(), group)?)
            }
            None if quantized => {
                args.one_of("weight", &weight, &[Dtype::I8, Dtype::I4])?;
                let scale = part("scale", scale)?;
                if let Some(scale) = &scale {
                    args.one_of("scale", scale, &[Dtype::F32, Dtype::Bf16])?;
                    args.shaped("scale", scale, &[n])?;
                }
                Factors::Codes { weight: weight.clone(), scale }
            }
            None => {
                args.one_of("weight", &weight, &[first.dtype])?;
                Factors::Float(weight.clone())
            }
        };
        let bias = part("bias", bias)?;
        if let Some(bias) = &bias {
            args.shaped("bias", bias, &[n])?;
        }
        groups.push(Group { factors, bias });
        let (x, out) = if kind == 0 { (first, &outs[0]) } else { (&xs[e], &outs[e]) };
        args.ranked("x", x, 2, 2)?;
        args.one_of("x", x, &[first.dtype])?;
        if x.shape[1] != weight.shape[0] {
            return Err(
                args.invalid("weight", format!("has {} rows; x has shape {:?}", weight.shape[0], x.shape))
            );
        }
        args.shaped("out", out, &[x.shape[0], n])?;
        let scaled = !matches!(&groups[e].factors, Factors::Codes { scale: None, .. });
        let takes: &[Dtype] = match quantized {
            false => std::slice::from_ref(&first.dtype),
            true if scaled => &[Dtype::F16, Dtype::Bf16],
            true => &[Dtype::I32],
        };
        args.one_of("out", out, takes)?;
    }
    let token = lists("perTokenScale")?;
    let token = match token {
        Some([token]) if kind == 0 && quantized => {
            args.one_of("perTokenScale", token, &[Dtype::F32])?;
            args.shaped("perTokenScale", token, &first.shape[..1])?;
            Some(token.clone())
        }
        Some(_) => return Err(args.invalid("perTokenScale", "is one tensor, beside codes of one x")),
        None => None,
    };
    let list = match kind {
        0 => {
            let list = args.tensor("groupList")?;
            let pairs = args.int_or("groupListType", 0)?;
            args.one_of("groupList", list, &[Dtype::I64])?;
            match pairs {
                0 | 1 => args.shaped("groupList", list, &[count])?,
                2 if quantized => args.shaped("groupList", list, &[count, 2])?,
                2 => return Err(args.invalid("groupListType", "= 2 goes with quantised x and weight")),
                mode => return Err(args.unknown_mode("groupListType", mode)),
            }
            Some((list.clone(), pairs))
        }
        _ => None,
    };
    let (xs, outs, operator) = (xs.to_vec(), outs.to_vec(), args.operator);
    run(move |memory| {
        let Some((list, kind)) = &list else {
            for (group, (x, out)) in groups.iter().zip(xs.iter().zip(&outs)) {
                group.run(x, out, None, activation, memory)?;
            }
            return Ok(());
        };
        for (e, start, rows) in spans(operator, &list.read_i64(memory)?, *kind, xs[0].shape[0], groups.len())?
        {
            let part = |tensor: &Tensor| tensor.narrow(0, start, rows, 1);
            groups[e].run(&part(&xs[0]), &part(&outs[0]), token.as_ref().map(part), activation, memory)?;
        }
        Ok(())
    })
}

/// Group, first row and rows of every group, from running sums (0), counts (1) or pairs of group and count (2).
fn spans(
    operator: &str,
    list: &[i64],
    kind: i64,
    rows: usize,
    count: usize,
) -> Result<Vec<(usize, usize, usize)>, Fault> {
    let mut start = 0;
    let mut spans = Vec::new();
    for (i, entry) in list.chunks(if kind == 2 { 2 } else { 1 }).enumerate() {
        let (e, size) = match kind {
            0 => (i, entry[0] - start as i64),
            1 => (i, entry[0]),
            _ => (resolve(operator, entry[0], count)?, entry[1]),
        };
        let size = usize::try_from(size).ok().filter(|size| start + size <= rows);
        let size = size.ok_or_else(|| {
            Fault::exception(format!("aclnn{operator}: groupList {list:?} does not split {rows} rows"))
        })?;
        spans.push((e, start, size));
        start += size;
    }
    Ok(spans)
}

impl Group {
    fn run(
        &self,
        x: &Tensor,
        out: &Tensor,
        token: Option<Tensor>,
        activation: fn(f64) -> f64,
        memory: &dyn Memory,
    ) -> Result<(), Fault> {
        let sizes = (x.shape[0], x.shape[1], out.shape[1]);
        let n = sizes.2.max(1);
        let bias = self.bias.as_ref().map(|bias| bias.read_f64(memory)).transpose()?;
        let bias = |i: usize| bias.as_ref().map_or(0.0, |bias| bias[i % n]);
        let mut row: Vec<f64> = match &self.factors {
            Factors::Codes { weight, scale } => {
                let mut sums = vec![0f64; sizes.0 * sizes.2];
                multiply(&x.read_f64(memory)?, &weight.read_f64(memory)?, sizes, &mut sums);
                let scale = scale.as_ref().map(|scale| scale.read_f64(memory)).transpose()?;
                let token = token.map(|token| token.read_f64(memory)).transpose()?;
                let integer = self.bias.as_ref().is_some_and(|bias| bias.dtype == Dtype::I32);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let codes = *sum + if integer { bias(i) } else { 0.0 };
                    let scaled = codes * scale.as_ref().map_or(1.0, |scale| scale[i % n]);
                    let scaled = scaled * token.as_ref().map_or(1.0, |token| token[i / n]);
                    *sum = scaled + if integer { 0.0 } else { bias(i) };
                }
                sums
            }
            factors => {
                let weight = match factors {
                    Factors::Expanded(weight) => weight.expand(x.dtype, memory)?,
                    Factors::Float(weight) | Factors::Codes { weight, .. } => weight.read_f32(memory)?,
                };
                let mut sums = vec![0f32; sizes.0 * sizes.2];
                multiply(&x.read_f32(memory)?, &weight, sizes, &mut sums);
                sums.iter().enumerate().map(|(i, &sum)| f64::from(sum) + bias(i)).collect()
            }
        };
        row.iter_mut().for_each(|x| *x = activation(*x));
        out.write_f64(memory, &row)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, close, noise, noise_of};
    use super::*;

    const SIZES: [usize; 3] = [2, 0, 3];
    const K: usize = 6;
    const N: usize = 4;

    /// Rows 0..2 of group 0, 2..5 of group 2, straight from the definition.
    fn direct(x: &[f64], w: &[f64]) -> Vec<f64> {
        let group = |i: usize| if i < SIZES[0] { 0 } else { 2 };
        let at = |i: usize, j: usize| (0..K).map(|p| x[i * K + p] * w[(group(i) * K + p) * N + j]).sum();
        (0..5 * N).map(|f| at(f / N, f % N)).collect()
    }

    #[test]
    fn rows_meet_the_weight_of_their_group() {
        let (x, w) = (noise_of(Dtype::Bf16, 6 * K, 1), noise_of(Dtype::Bf16, 3 * K * N, 2));
        for (kind, list) in [(0, [2.0, 2.0, 5.0]), (1, [2.0, 0.0, 3.0])] {
            let mut case = Case::new(Soc::A3, "GroupedMatmulV4").list("x", &[(Dtype::Bf16, &[6, K], &x)]);
            case = case.list("weight", &[(Dtype::Bf16, &[3, K, N], &w)]).input(
                "groupListOptional",
                Dtype::I64,
                &[3],
                &list,
            );
            case =
                case.int("splitItem", 3).int("groupListType", kind).outputs("out", &[(Dtype::Bf16, &[6, N])]);
            let case = case.done();
            let got = case.tensors("out")[0].read_f64(&case.arena).unwrap();
            close(&got[..5 * N], &direct(&x, &w), 8e-3);
            // Rows behind the last group stay as they were: the arena's filling.
            assert!(got[5 * N..].iter().all(|x| *x == Dtype::Bf16.decode(0xa5a5)));
        }
    }

    #[test]
    fn weights_in_blocks_multiply_as_rows_do_and_rows_are_refused() {
        // 6 × 20 of half precision: 2 columns of blocks of 16 rows by 16, the rest of which is padding.
        let (n, blocks) = (20, 2 * 16 * 16);
        let (x, w) = (noise_of(Dtype::F16, 4 * K, 8), noise_of(Dtype::F16, 2 * K * n, 9));
        let mut stored = vec![0.0; 2 * blocks];
        for (f, value) in w.iter().enumerate() {
            let (e, i, j) = (f / (K * n), f / n % K, f % n);
            stored[e * blocks + (j / 16 * 16 + i) * 16 + j % 16] = *value;
        }
        let call = || {
            let case = Case::new(Soc::A3, "GroupedMatmulWeightNz").list("x", &[(Dtype::F16, &[4, K], &x)]);
            let case = case.input("groupListOptional", Dtype::I64, &[2], &[1.0, 3.0]).int("groupListType", 1);
            case.int("splitItem", 3).outputs("out", &[(Dtype::F16, &[4, n])])
        };
        let mut case = call();
        let mut weight = case.make(Dtype::F16, &[2, 2, 1, 16, 16], &stored);
        weight.storage = weight.shape.clone();
        (weight.shape, weight.strides) = (vec![2, K, n], vec![K * n, n, 1]);
        weight.format = crate::view::Format::FractalNz;
        let case = case.set("weight", super::super::Value::Tensors(Some(vec![weight]))).done();
        let at = |i: usize, j: usize| {
            let e = usize::from(i > 0);
            (0..K).map(|p| x[i * K + p] * w[(e * K + p) * n + j]).sum::<f64>()
        };
        let want: Vec<f64> = (0..4 * n).map(|f| at(f / n, f % n)).collect();
        close(&case.tensors("out")[0].read_f64(&case.arena).unwrap(), &want, 1e-3);
        let plain = call().list("weight", &[(Dtype::F16, &[2, K, n], &w)]);
        assert!(plain.refused().message.contains("is not FRACTAL_NZ"));
    }

    #[test]
    fn codes_are_scaled_by_expert_column_and_token() {
        let codes = |count, seed| noise(count, seed).iter().map(|x| (x * 127.0).round()).collect::<Vec<_>>();
        let (x, w) = (codes(5 * K, 3), codes(3 * K * N, 4));
        let (scale, token) = (noise_of(Dtype::F32, 3 * N, 5), noise_of(Dtype::F32, 5, 6));
        let case = Case::new(Soc::A2, "GroupedMatmulV5")
            .list("x", &[(Dtype::I8, &[5, K], &x)])
            .list("weight", &[(Dtype::I8, &[3, K, N], &w)]);
        let case = case
            .list("scaleOptional", &[(Dtype::F32, &[3, N], &scale)])
            .list("perTokenScaleOptional", &[(Dtype::F32, &[5], &token)]);
        let case = case
            .input("groupListOptional", Dtype::I64, &[3], &[2.0, 0.0, 3.0])
            .int("splitItem", 2)
            .int("groupListType", 1);
        let case = case.outputs("out", &[(Dtype::F16, &[5, N])]).done();
        let mut want = direct(&x, &w);
        for (i, y) in want.iter_mut().enumerate() {
            *y *= scale[(if i / N < 2 { 0 } else { 2 }) * N + i % N] * token[i / N];
        }
        close(&case.tensors("out")[0].read_f64(&case.arena).unwrap(), &want, 1e-3);
    }

    #[test]
    fn separate_products_and_expanded_weights() {
        let (x, w) =
            (noise_of(Dtype::F16, 2 * K, 7), (0..K * N).map(|i| (i % 15) as f64 - 7.0).collect::<Vec<_>>());
        let scale = [0.5, 0.25, 1.0, 2.0];
        let case = Case::new(Soc::A2, "GroupedMatmulV3")
            .list("x", &[(Dtype::F16, &[2, K], &x)])
            .list("weight", &[(Dtype::I4, &[K, N], &w)]);
        let case = case.list("antiquantScaleOptional", &[(Dtype::F16, &[N], &scale)]).int("groupType", -1);
        let case = case.outputs("y", &[(Dtype::F16, &[2, N])]).done();
        let at = |i: usize| (0..K).map(|p| x[i / N * K + p] * w[p * N + i % N] * scale[i % N]).sum::<f64>();
        close(
            &case.tensors("y")[0].read_f64(&case.arena).unwrap(),
            &(0..2 * N).map(at).collect::<Vec<_>>(),
            1e-3,
        );
        let wrong =
            Case::new(Soc::A2, "GroupedMatmulV4").list("x", &[(Dtype::F16, &[2, K], &x)]).int("groupType", 2);
        let wrong =
            wrong.list("weight", &[(Dtype::F16, &[K, N], &w)]).outputs("out", &[(Dtype::F16, &[2, N])]);
        assert!(wrong.refused().message.contains("groupType = 2"));
    }
}
