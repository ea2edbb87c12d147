//! Normalisation: RMS, layer and group norms, and those fused with a sum.

use super::{Args, FLOATS, Refusal, Run, run};
use crate::tolerance::Rule;
use crate::view::{Dtype, Fault, Memory, Tensor, volume};

operators! {
    RmsNorm(x: T, gamma: T, epsilon: F64, yOut: O, rstdOut: O) = rms_norm;
    GemmaRmsNorm(x: T, gamma: T, epsilon: F64, yOut: O, rstdOut: O) = rms_norm;
    AddRmsNorm(x1: T, x2: T, gamma: T, epsilon: F64, yOut: O, rstdOut: O, xOut: O) = add_rms_norm;
    InplaceAddRmsNorm(x1Ref: U, x2Ref: U, gamma: T, epsilon: F64, rstdOut: O) = inplace_add_rms_norm;
    AddRmsNormCast(x1: T, x2: T, gamma: T, epsilon: F64, y1Out: O, y2Out: O, rstdOut: O, xOut: O) = add_rms_norm_cast;
    LayerNorm(input: T, normalizedShape: IA, weightOptional: T, biasOptional: T, eps: F64, out: O, meanOutOptional: O, rstdOutOptional: O) = layer_norm;
    FastLayerNorm(input: T, normalizedShape: IA, weightOptional: T, biasOptional: T, eps: F64, out: O, meanOutOptional: O, rstdOutOptional: O) = layer_norm;
    AddLayerNorm(x1: T, x2: T, gamma: T, beta: T, biasOptional: T, epsilon: F64, additionalOutput: B, yOut: O, meanOut: O, rstdOut: O, xOut: O) = add_layer_norm;
    GroupNorm(self: T, gamma: T, beta: T, N: I64, C: I64, HxW: I64, group: I64, eps: F64, out: O, meanOut: O, rstdOut: O) = group_norm;
}

/// y = x · gamma / √(mean x² + ε) per row of `gamma`'s size, and the reciprocals of the roots.
pub(super) fn rms_rows(x: &[f64], gamma: &[f64], epsilon: f64) -> (Vec<f64>, Vec<f64>) {
    let count = gamma.len();
    let mut roots = Vec::with_capacity(x.len() / count.max(1));
    let mut y = Vec::with_capacity(x.len());
    for row in x.chunks(count.max(1)) {
        let root = 1.0 / (row.iter().map(|x| x * x).sum::<f64>() / count as f64 + epsilon).sqrt();
        y.extend(row.iter().zip(gamma).map(|(x, g)| x * root * g));
        roots.push(root);
    }
    (y, roots)
}

/// Checks gamma against the trailing dimensions of x, and gives the shape of the per-row statistics.
pub(super) fn statistics_shape(args: &Args, x: &Tensor, gamma: &Tensor) -> Result<Vec<usize>, Refusal> {
    let lead =
        x.rank().checked_sub(gamma.rank()).filter(|&lead| gamma.rank() > 0 && x.shape[lead..] == gamma.shape);
    let Some(lead) = lead else {
        return Err(
            args.invalid("gamma", format!("{:?} is not the end of x's shape {:?}", gamma.shape, x.shape))
        );
    };
    Ok(x.shape.iter().enumerate().map(|(axis, &size)| if axis < lead { size } else { 1 }).collect())
}

/// The statistics' output: FLOAT, of the shape given.
fn statistics(args: &Args, name: &str, shape: &[usize]) -> Result<Tensor, Refusal> {
    let out = args.tensor(name)?;
    args.one_of(name, out, &[Dtype::F32])?;
    if let Err(refusal) = args.shaped(name, out, shape) {
        // Programs leave out the dimensions of 1.
        let long = |sizes: &[usize]| sizes.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
        if long(&out.shape) != long(shape) {
            return Err(refusal);
        }
        args.unless(Rule::StatisticsShape, refusal)?;
    }
    Ok(out.clone())
}

/// x and gamma of floats: gamma of x's type, or FLOAT beside 16-bit activations.
fn scaled(args: &Args, name: &str) -> Result<(Tensor, Tensor), Refusal> {
    let (x, gamma) = (args.tensor(name)?, args.tensor("gamma")?);
    args.one_of(name, x, FLOATS)?;
    args.one_of("gamma", gamma, &[x.dtype, Dtype::F32])?;
    Ok((x.clone(), gamma.clone()))
}

fn rms_norm(args: &Args) -> Result<Run, Refusal> {
    let (x, gamma) = scaled(args, "x")?;
    let shape = statistics_shape(args, &x, &gamma)?;
    let (y, rstd) = (args.tensor("yOut")?.clone(), statistics(args, "rstdOut", &shape)?);
    args.shaped("yOut", &y, &x.shape)?;
    args.one_of("yOut", &y, &[x.dtype])?;
    let epsilon = args.float("epsilon")?;
    // Gemma's weights are stored less one.
    let shift = if args.operator == "GemmaRmsNorm" { 1.0 } else { 0.0 };
    run(move |memory| {
        let gamma: Vec<f64> = gamma.read_f64(memory)?.iter().map(|g| g + shift).collect();
        let (row, roots) = rms_rows(&x.read_f64(memory)?, &gamma, epsilon);
        y.write_f64(memory, &row)?;
        rstd.write_f64(memory, &roots)
    })
}

/// Both addends, checked, of one shape and type.
pub(super) fn addends(args: &Args, names: [&str; 2]) -> Result<(Tensor, Tensor), Refusal> {
    let (a, b) = (args.tensor(names[0])?, args.tensor(names[1])?);
    args.one_of(names[0], a, FLOATS)?;
    args.one_of(names[1], b, &[a.dtype])?;
    args.shaped(names[1], b, &a.shape)?;
    Ok((a.clone(), b.clone()))
}

/// The sum in the type it is stored in.
pub(super) fn rounded_sum(a: &Tensor, b: &Tensor, memory: &dyn Memory) -> Result<Vec<f64>, Fault> {
    let (a_row, b_row) = (a.read_f64(memory)?, b.read_f64(memory)?);
    Ok(a_row.iter().zip(b_row).map(|(x, y)| a.dtype.round(x + y)).collect())
}

fn add_rms_norm(args: &Args) -> Result<Run, Refusal> {
    let (a, b) = addends(args, ["x1", "x2"])?;
    let (_, gamma) = scaled(args, "x1")?;
    let shape = statistics_shape(args, &a, &gamma)?;
    let (y, x, rstd) =
        (args.tensor("yOut")?.clone(), args.tensor("xOut")?.clone(), statistics(args, "rstdOut", &shape)?);
    for (name, out) in [("yOut", &y), ("xOut", &x)] {
        args.shaped(name, out, &a.shape)?;
        args.one_of(name, out, &[a.dtype])?;
    }
    let epsilon = args.float("epsilon")?;
    run(move |memory| {
        let sum = rounded_sum(&a, &b, memory)?;
        let (row, roots) = rms_rows(&sum, &gamma.read_f64(memory)?, epsilon);
        x.write_f64(memory, &sum)?;
        y.write_f64(memory, &row)?;
        rstd.write_f64(memory, &roots)
    })
}

/// x1 becomes the norm, x2 the sum.
fn inplace_add_rms_norm(args: &Args) -> Result<Run, Refusal> {
    let (a, b) = addends(args, ["x1Ref", "x2Ref"])?;
    let (_, gamma) = scaled(args, "x1Ref")?;
    let rstd = statistics(args, "rstdOut", &statistics_shape(args, &a, &gamma)?)?;
    let epsilon = args.float("epsilon")?;
    run(move |memory| {
        let sum = rounded_sum(&a, &b, memory)?;
        let (row, roots) = rms_rows(&sum, &gamma.read_f64(memory)?, epsilon);
        b.write_f64(memory, &sum)?;
        a.write_f64(memory, &row)?;
        rstd.write_f64(memory, &roots)
    })
}

/// The norm twice: as FLOAT, and in the type of x.
fn add_rms_norm_cast(args: &Args) -> Result<Run, Refusal> {
    let (a, b) = addends(args, ["x1", "x2"])?;
    let (_, gamma) = scaled(args, "x1")?;
    let rstd = statistics(args, "rstdOut", &statistics_shape(args, &a, &gamma)?)?;
    let outs = ["y1Out", "y2Out", "xOut"].map(|name| args.tensor(name).cloned());
    let [y1, y2, x] = outs;
    let (y1, y2, x) = (y1?, y2?, x?);
    for (name, out, dtype) in [("y1Out", &y1, Dtype::F32), ("y2Out", &y2, a.dtype), ("xOut", &x, a.dtype)] {
        args.shaped(name, out, &a.shape)?;
        args.one_of(name, out, &[dtype])?;
    }
    let epsilon = args.float("epsilon")?;
    run(move |memory| {
        let sum = rounded_sum(&a, &b, memory)?;
        let (row, roots) = rms_rows(&sum, &gamma.read_f64(memory)?, epsilon);
        x.write_f64(memory, &sum)?;
        y1.write_f64(memory, &row)?;
        y2.write_f64(memory, &row)?;
        rstd.write_f64(memory, &roots)
    })
}

/// Mean and reciprocal deviation of a row.
fn moments(row: &[f64], epsilon: f64) -> (f64, f64) {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / row.len() as f64;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// A weight or bias of the normalised shape, or a constant.
fn affine(
    tensor: &Option<Tensor>,
    count: usize,
    missing: f64,
    memory: &dyn Memory,
) -> Result<Vec<f64>, Fault> {
    tensor.as_ref().map_or_else(|| Ok(vec![missing; count]), |tensor| tensor.read_f64(memory))
}

fn layer_norm(args: &Args) -> Result<Run, Refusal> {
    let (x, out) = (args.tensor("input")?.clone(), args.tensor("out")?.clone());
    args.one_of("input", &x, FLOATS)?;
    args.one_of("out", &out, &[x.dtype])?;
    args.shaped("out", &out, &x.shape)?;
    let normalized: Vec<usize> =
        args.ints("normalizedShape")?.iter().map(|&size| size.max(0) as usize).collect();
    let lead = x
        .rank()
        .checked_sub(normalized.len())
        .filter(|&lead| !normalized.is_empty() && x.shape[lead..] == normalized);
    let Some(lead) = lead else {
        return Err(
            args.invalid("normalizedShape", format!("{normalized:?} is not the end of shape {:?}", x.shape))
        );
    };
    let mut parts = [None, None];
    for (part, name) in parts.iter_mut().zip(["weight", "bias"]) {
        if let Some(tensor) = args.optional(name)? {
            args.shaped(name, tensor, &normalized)?;
            args.one_of(name, tensor, &[x.dtype, Dtype::F32])?;
            *part = Some(tensor.clone());
        }
    }
    let shape: Vec<usize> =
        x.shape.iter().enumerate().map(|(i, &size)| if i < lead { size } else { 1 }).collect();
    let (mean, rstd) = (args.optional("meanOut")?.cloned(), args.optional("rstdOut")?.cloned());
    for (name, tensor) in [("meanOut", &mean), ("rstdOut", &rstd)] {
        if let Some(tensor) = tensor {
            args.shaped(name, tensor, &shape)?;
            args.one_of(name, tensor, FLOATS)?;
        }
    }
    let (epsilon, count, [weight, bias]) = (args.float("eps")?, volume(&normalized), parts);
    run(move |memory| {
        let (weight, bias) = (affine(&weight, count, 1.0, memory)?, affine(&bias, count, 0.0, memory)?);
        let (mut row, mut means, mut roots) = (x.read_f64(memory)?, Vec::new(), Vec::new());
        for lane in row.chunks_mut(count.max(1)) {
            let (mean, root) = moments(lane, epsilon);
            lane.iter_mut().enumerate().for_each(|(i, x)| *x = (*x - mean) * root * weight[i] + bias[i]);
            means.push(mean);
            roots.push(root);
        }
        mean.iter().try_for_each(|out| out.write_f64(memory, &means))?;
        rstd.iter().try_for_each(|out| out.write_f64(memory, &roots))?;
        out.write_f64(memory, &row)
    })
}

/// y = layer norm of x1 + x2 + bias over the last dimension.
fn add_layer_norm(args: &Args) -> Result<Run, Refusal> {
    let (a, b) = (args.tensor("x1")?.clone(), args.tensor("x2")?.clone());
    let (gamma, beta) = (args.tensor("gamma")?.clone(), args.tensor("beta")?.clone());
    args.ranked("x1", &a, 1, 8)?;
    args.one_of("x1", &a, FLOATS)?;
    args.one_of("x2", &b, FLOATS)?;
    args.shaped("x2", &b, &a.shape)?;
    let count = a.shape[a.rank() - 1];
    for (name, tensor) in [("gamma", &gamma), ("beta", &beta)] {
        args.one_of(name, tensor, FLOATS)?;
        args.shaped(name, tensor, &[count])?;
    }
    let bias = args.optional("bias")?.map(|bias| args.spread("bias", bias, &a.shape)).transpose()?;
    let mut shape = a.shape.clone();
    shape[a.rank() - 1] = 1;
    let (mean, rstd) = (statistics(args, "meanOut", &shape)?, statistics(args, "rstdOut", &shape)?);
    let (y, x) = (args.tensor("yOut")?.clone(), args.tensor("xOut")?.clone());
    args.shaped("yOut", &y, &a.shape)?;
    args.shaped("xOut", &x, &a.shape)?;
    let (epsilon, also) = (args.float("epsilon")?, args.flag("additionalOutput")?);
    run(move |memory| {
        let mut row = a.read_f64(memory)?;
        row.iter_mut().zip(b.read_f64(memory)?).for_each(|(x, y)| *x += y);
        if let Some(bias) = &bias {
            row.iter_mut().zip(bias.read_f64(memory)?).for_each(|(x, y)| *x += y);
        }
        if also {
            x.write_f64(memory, &row)?;
        }
        let (gamma, beta) = (gamma.read_f64(memory)?, beta.read_f64(memory)?);
        let (mut means, mut roots) = (Vec::new(), Vec::new());
        for lane in row.chunks_mut(count.max(1)) {
            let (mean, root) = moments(lane, epsilon);
            lane.iter_mut().enumerate().for_each(|(i, x)| *x = (*x - mean) * root * gamma[i] + beta[i]);
            means.push(mean);
            roots.push(root);
        }
        mean.write_f64(memory, &means)?;
        rstd.write_f64(memory, &roots)?;
        y.write_f64(memory, &row)
    })
}

/// Groups of C/group channels of one sample are normalised together; weights are per channel.
fn group_norm(args: &Args) -> Result<Run, Refusal> {
    let (x, out) = (args.tensor("self")?.clone(), args.tensor("out")?.clone());
    args.one_of("self", &x, FLOATS)?;
    args.one_of("out", &out, &[x.dtype])?;
    args.shaped("out", &out, &x.shape)?;
    let [n, c, area, groups] =
        ["N", "C", "HxW", "group"].map(|name| args.int(name).map(|size| usize::try_from(size).unwrap_or(0)));
    let (n, c, area, groups) = (n?, c?, area?, groups?);
    args.ranked("self", &x, 2, 8)?;
    if groups == 0 || !c.is_multiple_of(groups) {
        return Err(args.invalid("group", format!("= {groups} does not divide {c} channels")));
    }
    if n * c * area != x.numel() {
        return Err(args.invalid("self", format!("has shape {:?}; N, C, HxW are {n}, {c}, {area}", x.shape)));
    }
    let mut parts = [None, None];
    for (part, name) in parts.iter_mut().zip(["gamma", "beta"]) {
        if let Some(tensor) = args.optional(name)? {
            args.shaped(name, tensor, &[c])?;
            *part = Some(tensor.clone());
        }
    }
    let (mean, rstd) = (args.tensor("meanOut")?.clone(), args.tensor("rstdOut")?.clone());
    for (name, tensor) in [("meanOut", &mean), ("rstdOut", &rstd)] {
        args.shaped(name, tensor, &[n, groups])?;
        args.one_of(name, tensor, &[x.dtype, Dtype::F32])?;
    }
    let (epsilon, count, [gamma, beta]) = (args.float("eps")?, c / groups * area, parts);
    run(move |memory| {
        let (gamma, beta) = (affine(&gamma, c, 1.0, memory)?, affine(&beta, c, 0.0, memory)?);
        let (mut row, mut means, mut roots) = (x.read_f64(memory)?, Vec::new(), Vec::new());
        for (g, lane) in row.chunks_mut(count.max(1)).enumerate() {
            let (mean, root) = moments(lane, epsilon);
            for (i, x) in lane.iter_mut().enumerate() {
                let channel = g % groups * (c / groups) + i / area;
                *x = (*x - mean) * root * gamma[channel] + beta[channel];
            }
            means.push(mean);
            roots.push(root);
        }
        mean.write_f64(memory, &means)?;
        rstd.write_f64(memory, &roots)?;
        out.write_f64(memory, &row)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, close, noise_of};
    use super::*;

    #[test]
    fn rms_rows_have_unit_size_and_follow_the_formula() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let (x, g) = (noise_of(dtype, 12, 1), noise_of(dtype, 4, 2));
            for layout in LAYOUTS {
                let case = Case::new(Soc::A3, "RmsNorm")
                    .laid(layout)
                    .input("x", dtype, &[3, 4], &x)
                    .float("epsilon", 1e-6);
                let case = case.input("gamma", dtype, &[4], &g).output("yOut", dtype, &[3, 4]);
                let case = case.output("rstdOut", Dtype::F32, &[3, 1]).done();
                let y = case.read("yOut");
                let row = &x[4..8];
                let root = (row.iter().map(|x| x * x).sum::<f64>() / 4.0 + 1e-6).powf(-0.5);
                close(&[y[6], case.read("rstdOut")[1]], &[x[6] * root * g[2], root], 8e-3);
            }
        }
        let case = Case::new(Soc::A3, "RmsNorm").input("x", Dtype::F32, &[1, 2], &[3.0, 4.0]);
        let case = case.input("gamma", Dtype::F32, &[2], &[1.0; 2]).output("yOut", Dtype::F32, &[1, 2]);
        let y = case.output("rstdOut", Dtype::F32, &[1, 1]).done().read("yOut");
        close(&[y.iter().map(|y| y * y).sum()], &[2.0], 1e-6);
        // The statistics keep the rank, unless that may be broken; a wrong number of them never may.
        let flat = |rows: usize| {
            let case = Case::new(Soc::A3, "RmsNorm").input("x", Dtype::F32, &[2, 2], &[3.0, 4.0, 0.0, 2.0]);
            let case = case.input("gamma", Dtype::F32, &[2], &[1.0; 2]).output("yOut", Dtype::F32, &[2, 2]);
            case.output("rstdOut", Dtype::F32, &[rows])
        };
        assert!(flat(2).refused().message.contains("wanted: [2, 1]"));
        let roots = flat(2).tolerating(Rule::StatisticsShape).done().read("rstdOut");
        close(&roots, &[12.5f64.powf(-0.5), 2f64.powf(-0.5)], 1e-6);
        assert!(flat(3).tolerating(Rule::StatisticsShape).refused().message.contains("rstdOut"));
        let short = Case::new(Soc::A3, "RmsNorm").input("x", Dtype::F32, &[2, 3], &[0.0; 6]);
        assert!(short.input("gamma", Dtype::F32, &[2], &[1.0; 2]).refused().message.contains("gamma [2]"));
    }

    #[test]
    fn a_sum_is_rounded_before_it_is_normalised() {
        let (a, b) = (noise_of(Dtype::F16, 6, 3), noise_of(Dtype::F16, 6, 4));
        let case = Case::new(Soc::A2, "AddRmsNorm").input("x1", Dtype::F16, &[2, 3], &a).input(
            "x2",
            Dtype::F16,
            &[2, 3],
            &b,
        );
        let case = case.input("gamma", Dtype::F16, &[3], &[1.0; 3]).float("epsilon", 0.0);
        let case = case.output("yOut", Dtype::F16, &[2, 3]).output("rstdOut", Dtype::F32, &[2, 1]);
        let case = case.output("xOut", Dtype::F16, &[2, 3]).done();
        let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| Dtype::F16.round(a + b)).collect();
        assert_eq!(case.read("xOut"), sum);
        let size = (sum[..3].iter().map(|x| x * x).sum::<f64>() / 3.0).sqrt();
        close(&case.read("yOut")[..1], &[sum[0] / size], 1e-3);
    }

    #[test]
    fn layer_rows_have_mean_zero_and_variance_one() {
        let x = noise_of(Dtype::F32, 24, 5);
        for layout in LAYOUTS {
            let case =
                Case::new(Soc::A2, "LayerNorm").laid(layout).input("input", Dtype::F32, &[2, 3, 4], &x);
            let case = case.ints("normalizedShape", &[3, 4]).float("eps", 1e-12).output(
                "out",
                Dtype::F32,
                &[2, 3, 4],
            );
            let y = case.output("meanOutOptional", Dtype::F32, &[2, 1, 1]).done().read("out");
            for row in y.chunks(12) {
                close(&[row.iter().sum(), row.iter().map(|x| x * x).sum()], &[0.0, 12.0], 1e-5);
            }
        }
        let case = Case::new(Soc::A2, "LayerNorm").input("input", Dtype::F32, &[1, 2], &[1.0, 3.0]);
        let case = case.ints("normalizedShape", &[2]).input("weightOptional", Dtype::F32, &[2], &[2.0, 2.0]);
        let case =
            case.input("biasOptional", Dtype::F32, &[2], &[1.0, 1.0]).output("out", Dtype::F32, &[1, 2]);
        assert_eq!(case.done().read("out"), [-1.0, 3.0]);
    }

    #[test]
    fn groups_of_channels_are_normalised_together() {
        let x = noise_of(Dtype::F32, 2 * 4 * 3, 6);
        let case =
            Case::new(Soc::A2, "GroupNorm").input("self", Dtype::F32, &[2, 4, 3], &x).float("eps", 1e-9);
        let case = case.int("N", 2).int("C", 4).int("HxW", 3).int("group", 2);
        let case = case.input("gamma", Dtype::F32, &[4], &[1.0, 1.0, 2.0, 2.0]).output(
            "out",
            Dtype::F32,
            &[2, 4, 3],
        );
        let case = case.output("meanOut", Dtype::F32, &[2, 2]).output("rstdOut", Dtype::F32, &[2, 2]).done();
        let y = case.read("out");
        close(
            &[y[..6].iter().map(|x| x * x).sum(), y[6..12].iter().map(|x| x * x).sum()],
            &[6.0, 24.0],
            1e-5,
        );
        close(&case.read("meanOut")[..1], &[x[..6].iter().sum::<f64>() / 6.0], 1e-6);
    }
}
