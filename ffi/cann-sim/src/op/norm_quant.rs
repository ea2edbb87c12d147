//! Norms and gates whose result is quantised in the same kernel.

use super::gate::swiglu_rows;
use super::norm::{addends, rms_rows, rounded_sum, statistics_shape};
use super::quantize::quantize_rows;
use super::{Args, FLOATS, Refusal, Run, run};
use crate::view::{Dtype, Tensor, volume};

operators! {
    AddRmsNormDynamicQuant(x1: T, x2: T, gamma: T, smoothScale1Optional: T, smoothScale2Optional: T, epsilon: F64, y1Out: O, y2Out: O, xOut: O, scale1Out: O, scale2Out: O) = add_dynamic;
    RmsNormDynamicQuant(x: T, gamma: T, smoothScalesOptional: T, betaOptional: T, epsilon: F64, dstType: I64, yOut: O, scaleOut: O) = dynamic;
    AddRmsNormQuant(x1: T, x2: T, gamma: T, scales1: T, scales2Optional: T, zeroPoints1Optional: T, zeroPoints2Optional: T, axis: I64, epsilon: F64, divMode: B, y1Out: O, y2Out: O, xOut: O) = add_fixed;
    DequantSwigluQuant(x: T, weightScaleOptional: T, activationScaleOptional: T, biasOptional: T, quantScaleOptional: T, quantOffsetOptional: T, groupIndexOptional: T, activateLeft: B, quantModeOptional: CS, yOut: O, scaleOut: O) = dequant_swiglu;
}

/// A row of factors for gamma's elements, of x's type or FLOAT.
fn factors(args: &Args, name: &str, x: &Tensor, gamma: &Tensor) -> Result<Option<Tensor>, Refusal> {
    let tensor = args.optional(name)?;
    if let Some(tensor) = tensor {
        args.shaped(name, tensor, &gamma.shape)?;
        args.one_of(name, tensor, &[x.dtype, Dtype::F32])?;
    }
    Ok(tensor.cloned())
}

/// Codes of x's shape and a FLOAT scale per row.
fn coded(args: &Args, names: (&str, &str), x: &Tensor, gamma: &Tensor) -> Result<(Tensor, Tensor), Refusal> {
    let (codes, scale) = (args.tensor(names.0)?, args.tensor(names.1)?);
    args.one_of(names.0, codes, &[Dtype::I8])?;
    args.shaped(names.0, codes, &x.shape)?;
    args.one_of(names.1, scale, &[Dtype::F32])?;
    args.shaped(names.1, scale, &x.shape[..x.rank() - gamma.rank()])?;
    Ok((codes.clone(), scale.clone()))
}

/// Gamma, checked against x.
fn gamma(args: &Args, x: &Tensor) -> Result<Tensor, Refusal> {
    let gamma = args.tensor("gamma")?;
    args.one_of("gamma", gamma, &[x.dtype])?;
    statistics_shape(args, x, gamma)?;
    Ok(gamma.clone())
}

/// x = x1 + x2, and its norm quantised row by row after each of the smoothing factors given; without any, once.
fn add_dynamic(args: &Args) -> Result<Run, Refusal> {
    let (a, b) = addends(args, ["x1", "x2"])?;
    let gamma = gamma(args, &a)?;
    let x = args.tensor("xOut")?.clone();
    args.shaped("xOut", &x, &a.shape)?;
    args.one_of("xOut", &x, &[a.dtype])?;
    let first = factors(args, "smoothScale1", &a, &gamma)?;
    let second = factors(args, "smoothScale2", &a, &gamma)?;
    if second.is_some() && first.is_none() {
        return Err(args.invalid("smoothScale1", "is null, but smoothScale2 is not"));
    }
    let mut outputs = vec![(first, coded(args, ("y1Out", "scale1Out"), &a, &gamma)?)];
    if second.is_some() {
        outputs.push((second, coded(args, ("y2Out", "scale2Out"), &a, &gamma)?));
    }
    let epsilon = args.float("epsilon")?;
    run(move |memory| {
        let sum = rounded_sum(&a, &b, memory)?;
        let (norm, _) = rms_rows(&sum, &gamma.read_f64(memory)?, epsilon);
        x.write_f64(memory, &sum)?;
        let width = gamma.numel();
        for (smooth, (codes, scale)) in &outputs {
            let mut row = norm.clone();
            if let Some(smooth) = smooth {
                let smooth = smooth.read_f64(memory)?;
                row.iter_mut().enumerate().for_each(|(i, x)| *x *= smooth[i % width]);
            }
            let (values, scales) = quantize_rows(&row, width);
            codes.write_f64(memory, &values)?;
            scale.write_f64(memory, &scales)?;
        }
        Ok(())
    })
}

fn dynamic(args: &Args) -> Result<Run, Refusal> {
    let x = args.tensor("x")?.clone();
    args.one_of("x", &x, FLOATS)?;
    let gamma = gamma(args, &x)?;
    if args.int("dstType")? != Dtype::I8 as i64 {
        return Err(args.unknown_mode("dstType", args.int("dstType")?));
    }
    let (smooth, beta) = (factors(args, "smoothScales", &x, &gamma)?, factors(args, "beta", &x, &gamma)?);
    let (codes, scale) = coded(args, ("yOut", "scaleOut"), &x, &gamma)?;
    let epsilon = args.float("epsilon")?;
    run(move |memory| {
        let (mut row, _) = rms_rows(&x.read_f64(memory)?, &gamma.read_f64(memory)?, epsilon);
        let width = gamma.numel();
        if let Some(beta) = &beta {
            let beta = beta.read_f64(memory)?;
            row.iter_mut().enumerate().for_each(|(i, x)| *x += beta[i % width]);
        }
        if let Some(smooth) = &smooth {
            let smooth = smooth.read_f64(memory)?;
            row.iter_mut().enumerate().for_each(|(i, x)| *x *= smooth[i % width]);
        }
        let (values, scales) = quantize_rows(&row, width);
        codes.write_f64(memory, &values)?;
        scale.write_f64(memory, &scales)
    })
}

/// The norm of the sum by fixed scales: divided by them in `divMode`, multiplied otherwise, and a zero point added.
fn add_fixed(args: &Args) -> Result<Run, Refusal> {
    let (a, b) = addends(args, ["x1", "x2"])?;
    let gamma = gamma(args, &a)?;
    args.absent(&["scales2", "zeroPoints2"])?;
    if args.int("axis")? != -1 {
        return Err(args.unknown_mode("axis", args.int("axis")?));
    }
    let (x, y) = (args.tensor("xOut")?.clone(), args.tensor("y1Out")?.clone());
    args.shaped("xOut", &x, &a.shape)?;
    args.one_of("xOut", &x, &[a.dtype])?;
    args.shaped("y1Out", &y, &a.shape)?;
    args.one_of("y1Out", &y, &[Dtype::I8])?;
    let scales = args.tensor("scales1")?;
    args.shaped("scales1", scales, &gamma.shape)?;
    let scales = scales.clone();
    let zeros = args.optional("zeroPoints1")?.cloned();
    if let Some(zeros) = &zeros {
        args.shaped("zeroPoints1", zeros, &gamma.shape)?;
    }
    let (epsilon, divides) = (args.float("epsilon")?, args.flag("divMode")?);
    run(move |memory| {
        let sum = rounded_sum(&a, &b, memory)?;
        let (mut row, _) = rms_rows(&sum, &gamma.read_f64(memory)?, epsilon);
        x.write_f64(memory, &sum)?;
        let (scales, width) = (scales.read_f64(memory)?, gamma.numel());
        let zeros = zeros.as_ref().map(|zeros| zeros.read_f64(memory)).transpose()?;
        for (i, x) in row.iter_mut().enumerate() {
            let scaled = if divides { *x / scales[i % width] } else { *x * scales[i % width] };
            *x = (scaled + zeros.as_ref().map_or(0.0, |zeros| zeros[i % width])).round_ties_even();
        }
        y.write_f64(memory, &row)
    })
}

/// Sums of codes scaled back, gated, and quantised row by row. Running sums of rows choose the weights' scales.
fn dequant_swiglu(args: &Args) -> Result<Run, Refusal> {
    let (x, y, scale) =
        (args.tensor("x")?.clone(), args.tensor("yOut")?.clone(), args.tensor("scaleOut")?.clone());
    args.one_of("x", &x, &[Dtype::I32, Dtype::F16, Dtype::Bf16])?;
    args.ranked("x", &x, 2, 8)?;
    args.absent(&["bias", "quantOffset", "groupIndex"])?;
    match args.text("quantModeOptional")? {
        "dynamic" => {}
        mode => return Err(args.unknown_mode("quantMode", mode)),
    }
    let width = x.shape[x.rank() - 1];
    let lead = &x.shape[..x.rank() - 1];
    if !width.is_multiple_of(2) {
        return Err(args.invalid("x", format!("has rows of {width}, an odd number")));
    }
    args.one_of("yOut", &y, &[Dtype::I8])?;
    args.shaped("yOut", &y, &[lead, &[width / 2]].concat())?;
    args.one_of("scaleOut", &scale, &[Dtype::F32])?;
    args.shaped("scaleOut", &scale, lead)?;
    let part = |name: &str, count: usize| -> Result<Option<Tensor>, Refusal> {
        let tensor = args.optional(name)?;
        if let Some(tensor) = tensor {
            args.one_of(name, tensor, &[Dtype::F32])?;
            if tensor.numel() != count || tensor.shape.iter().filter(|size| **size != 1).count() > 1 {
                return Err(
                    args.invalid(name, format!("has shape {:?}; wanted: {count} elements", tensor.shape))
                );
            }
        }
        Ok(tensor.cloned())
    };
    let rows = volume(lead);
    let (weight, token) = (part("weightScale", width)?, part("activationScale", rows)?);
    if x.dtype == Dtype::I32 && weight.is_none() {
        return Err(args.invalid("weightScale", "is needed where x is INT32"));
    }
    let smooth = part("quantScale", width / 2)?;
    let left = args.flag("activateLeft")?;
    run(move |memory| {
        let mut row = x.read_f64(memory)?;
        if let Some(weight) = &weight {
            let weight = weight.read_f64(memory)?;
            row.iter_mut().enumerate().for_each(|(i, x)| *x *= weight[i % width]);
        }
        if let Some(token) = &token {
            let token = token.read_f64(memory)?;
            row.iter_mut().enumerate().for_each(|(i, x)| *x *= token[i / width]);
        }
        let mut gated = swiglu_rows(&row, width, left);
        if let Some(smooth) = &smooth {
            let smooth = smooth.read_f64(memory)?;
            gated.iter_mut().enumerate().for_each(|(i, x)| *x *= smooth[i % (width / 2)]);
        }
        let (codes, mut scales) = quantize_rows(&gated, width / 2);
        scales.resize(rows, 0.0);
        y.write_f64(memory, &codes)?;
        scale.write_f64(memory, &scales)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, close};
    use super::*;

    #[test]
    fn a_norm_is_quantised_once_per_smoothing_factor() {
        // The sum is (3, 4) with a root mean square of √12.5.
        let case = Case::new(Soc::A3, "AddRmsNormDynamicQuant").input("x1", Dtype::F16, &[1, 2], &[1.0, 4.0]);
        let case =
            case.input("x2", Dtype::F16, &[1, 2], &[2.0, 0.0]).input("gamma", Dtype::F16, &[2], &[1.0; 2]);
        let case = case.input("smoothScale1Optional", Dtype::F16, &[2], &[1.0, 1.0]);
        let case = case.input("smoothScale2Optional", Dtype::F16, &[2], &[4.0, 1.0]);
        let case = case.output("y1Out", Dtype::I8, &[1, 2]).output("y2Out", Dtype::I8, &[1, 2]);
        let case = case.output("scale1Out", Dtype::F32, &[1]).output("scale2Out", Dtype::F32, &[1]);
        let case = case.output("xOut", Dtype::F16, &[1, 2]).done();
        assert_eq!(case.read("xOut"), [3.0, 4.0]);
        assert_eq!((case.read("y1Out"), case.read("y2Out")), (vec![95.0, 127.0], vec![127.0, 42.0]));
        let root = 12.5f64.sqrt();
        close(&case.read("scale1Out"), &[4.0 / root / 127.0], 1e-6);
        close(&case.read("scale2Out"), &[12.0 / root / 127.0], 1e-6);
        let case = Case::new(Soc::A3, "AddRmsNormQuant")
            .input("x1", Dtype::F16, &[1, 2], &[1.0, -1.0])
            .int("axis", -1);
        let case =
            case.input("x2", Dtype::F16, &[1, 2], &[0.0; 2]).input("gamma", Dtype::F16, &[2], &[1.0; 2]);
        let case = case.input("scales1", Dtype::F32, &[2], &[0.25, 0.5]).flag("divMode", true);
        let case = case.output("y1Out", Dtype::I8, &[1, 2]).output("xOut", Dtype::F16, &[1, 2]).done();
        assert_eq!(case.read("y1Out"), [4.0, -2.0]);
    }

    #[test]
    fn sums_of_codes_are_scaled_gated_and_coded() {
        let case = Case::new(Soc::A2, "DequantSwigluQuant").input(
            "x",
            Dtype::I32,
            &[1, 4],
            &[400.0, 200.0, 10.0, 30.0],
        );
        let case = case
            .input("weightScaleOptional", Dtype::F32, &[4], &[0.1, 0.2, 0.1, 0.1])
            .flag("activateLeft", true);
        let case = case
            .input("activationScaleOptional", Dtype::F32, &[1], &[1.0])
            .text("quantModeOptional", "dynamic");
        let case = case.output("yOut", Dtype::I8, &[1, 2]).output("scaleOut", Dtype::F32, &[1]).done();
        // silu(40) · 1 and silu(40) · 3.
        assert_eq!(case.read("yOut"), [42.0, 127.0]);
        close(&case.read("scaleOut"), &[120.0 / 127.0], 1e-5);
    }
}
