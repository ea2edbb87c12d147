//! Functions of one number.

use super::promote::{Row, check_result, in_floats, promote_scalar};
use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Tensor};

operators! {
    Abs(self: T, out: O) = signed;
    Neg(self: T, out: O) = signed;
    Sign(self: T, result: O) = signed;
    Relu(self: T, out: O) = signed;
    Exp(self: T, out: O) = unary;
    Expm1(self: T, out: O) = unary;
    Log(self: T, out: O) = unary;
    Sqrt(self: T, out: O) = unary;
    Rsqrt(self: T, out: O) = unary;
    Reciprocal(self: T, out: O) = unary;
    Sin(self: T, out: O) = unary;
    Cos(input: T, out: O) = unary;
    Sigmoid(self: T, out: O) = unary;
    Tanh(self: T, out: O) = unary;
    Silu(self: T, out: O) = unary;
    Gelu(self: T, out: O) = unary;
    Erf(self: T, out: O) = unary;
    Hardsigmoid(self: T, out: O) = unary;
    Hardswish(self: T, out: O) = unary;
    Floor(self: T, out: O) = unary;
    Ceil(self: T, out: O) = unary;
    Round(self: T, out: O) = unary;
    Trunc(self: T, out: O) = unary;
    InplaceExp(selfRef: U) = unary;
    InplaceSin(selfRef: U) = unary;
    InplaceCos(selfRef: U) = unary;
    InplaceSqrt(selfRef: U) = unary;
    InplaceRelu(selfRef: U) = signed;
    InplaceNeg(selfRef: U) = signed;
    GeluV2(x: T, approximate: I64, y: O) = gelu_v2;
    Softplus(self: T, beta: S, threshold: S, out: O) = softplus;
    Elu(self: T, alpha: S, scale: S, inputScale: S, out: O) = elu;
    LeakyRelu(self: T, negativeSlope: S, out: O) = leaky_relu;
    Threshold(self: T, threshold: S, value: S, out: O) = threshold;
    InplaceThreshold(selfRef: U, threshold: S, value: S) = threshold;
    Clamp(self: T, clipValueMin: S, clipValueMax: S, out: O) = clamp;
    ClampMin(self: T, clipValueMin: S, out: O) = clamp;
    ClampMax(self: T, clipValueMax: S, out: O) = clamp;
    InplaceClampMin(selfRef: U, clipValueMin: S) = clamp;
    InplaceClampMax(selfRef: U, clipValueMax: S) = clamp;
    Cast(self: T, dtype: DT, out: O) = cast;
}

/// The error function: the series without cancellation, and 1 beyond what an f64 can tell from it.
pub(crate) fn erf(x: f64) -> f64 {
    let magnitude = x.abs();
    if x.is_nan() || magnitude > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    // 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!!
    let (mut term, mut sum, mut n) = (magnitude, magnitude, 0.0);
    while term > sum * 1e-17 {
        n += 1.0;
        term *= 2.0 * magnitude * magnitude / (2.0 * n + 1.0);
        sum += term;
    }
    x.signum() * std::f64::consts::FRAC_2_SQRT_PI * (-magnitude * magnitude).exp() * sum
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(crate) fn silu(x: f64) -> f64 {
    // Where the logistic function has vanished the product is a zero, also at −∞.
    if x < -745.0 { -0.0 } else { x * sigmoid(x) }
}

pub(crate) fn gelu_erf(x: f64) -> f64 {
    // ½ (1 + erf) loses what a small tail has; there is none left where it would show in 16 or 32 bits.
    if x == f64::NEG_INFINITY { 0.0 } else { 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)) }
}

pub(crate) fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
    if x == f64::NEG_INFINITY { 0.0 } else { 0.5 * x * (1.0 + inner.tanh()) }
}

fn function(operator: &str) -> Option<fn(f64) -> f64> {
    Some(match operator.strip_prefix("Inplace").unwrap_or(operator) {
        "Abs" => f64::abs,
        "Neg" => |x| -x,
        "Sign" => |x| if x == 0.0 || x.is_nan() { x } else { x.signum() },
        "Relu" => |x| if x < 0.0 { 0.0 } else { x },
        "Exp" => f64::exp,
        "Expm1" => f64::exp_m1,
        "Log" => f64::ln,
        "Sqrt" => f64::sqrt,
        "Rsqrt" => |x| 1.0 / x.sqrt(),
        "Reciprocal" => |x| 1.0 / x,
        "Sin" => f64::sin,
        "Cos" => f64::cos,
        "Sigmoid" => sigmoid,
        "Tanh" => f64::tanh,
        "Silu" => silu,
        // The kernel of the first version is the tanh form; GeluV2 has the choice.
        "Gelu" => gelu_tanh,
        "Erf" => erf,
        "Hardsigmoid" => |x| (x / 6.0 + 0.5).clamp(0.0, 1.0),
        "Hardswish" => |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        "Floor" => f64::floor,
        "Ceil" => f64::ceil,
        "Round" => f64::round_ties_even,
        "Trunc" => f64::trunc,
        _ => return None,
    })
}

/// Argument and result: one tensor in place, two otherwise, of one shape.
fn ends(args: &Args) -> Result<(Tensor, Tensor), Refusal> {
    if args.operator.starts_with("Inplace") {
        let both = args.tensor("selfRef")?;
        return Ok((both.clone(), both.clone()));
    }
    let (input, output) = match args.operator {
        "GeluV2" => ("x", "y"),
        "Cos" => ("input", "out"),
        "Sign" => ("self", "result"),
        _ => ("self", "out"),
    };
    let (a, out) = (args.tensor(input)?, args.tensor(output)?);
    args.shaped(output, out, &a.shape)?;
    Ok((a.clone(), out.clone()))
}

/// Functions that keep integers integers.
fn signed(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = ends(args)?;
    if in_floats(a.dtype) {
        return unary(args);
    }
    check_result(args, "out", &out, a.dtype)?;
    let operator = args.operator.strip_prefix("Inplace").unwrap_or(args.operator);
    run(move |memory| {
        let mut row = a.read_i64(memory)?;
        row.iter_mut().for_each(|x| {
            *x = match operator {
                "Abs" => x.wrapping_abs(),
                "Neg" => x.wrapping_neg(),
                "Sign" => x.signum(),
                _ => (*x).max(0),
            }
        });
        Row::Int(row).write(&out, a.dtype, memory)
    })
}

fn unary(args: &Args) -> Result<Run, Refusal> {
    let f = function(args.operator).ok_or_else(|| args.unknown_mode("operator", args.operator))?;
    map(args, f)
}

/// A function applied to every element; integers give results of type FLOAT.
fn map(args: &Args, f: impl Fn(f64) -> f64 + Send + Sync + 'static) -> Result<Run, Refusal> {
    let (a, out) = ends(args)?;
    if a.dtype.is_narrow_float() || a.dtype == Dtype::I4 {
        return Err(args.invalid("self", format!("has type {}", a.dtype.name())));
    }
    let domain = if in_floats(a.dtype) { a.dtype } else { Dtype::F32 };
    check_result(args, "out", &out, domain)?;
    run(move |memory| {
        let mut row = a.read_f64(memory)?;
        row.iter_mut().for_each(|x| *x = f(*x));
        Row::Float(row).write(&out, domain, memory)
    })
}

fn gelu_v2(args: &Args) -> Result<Run, Refusal> {
    match args.int("approximate")? {
        0 => map(args, gelu_erf),
        1 => map(args, gelu_tanh),
        mode => Err(args.unknown_mode("approximate", mode)),
    }
}

fn softplus(args: &Args) -> Result<Run, Refusal> {
    let (beta, threshold) = (args.scalar("beta")?.float, args.scalar("threshold")?.float);
    map(args, move |x| if beta * x > threshold { x } else { (beta * x).exp().ln_1p() / beta })
}

/// scale · (x, or alpha · (e^(inputScale · x) − 1) where x ≤ 0).
fn elu(args: &Args) -> Result<Run, Refusal> {
    let [alpha, scale, input_scale] = ["alpha", "scale", "inputScale"].map(|name| args.scalar(name));
    let (alpha, scale, input_scale) = (alpha?.float, scale?.float, input_scale?.float);
    map(args, move |x| scale * if x > 0.0 { x } else { alpha * (input_scale * x).exp_m1() })
}

fn leaky_relu(args: &Args) -> Result<Run, Refusal> {
    let slope = args.scalar("negativeSlope")?.float;
    map(args, move |x| if x < 0.0 { slope * x } else { x })
}

fn threshold(args: &Args) -> Result<Run, Refusal> {
    let (threshold, value) = (args.scalar("threshold")?.float, args.scalar("value")?.float);
    map(args, move |x| if x <= threshold { value } else { x })
}

/// The upper bound is applied last: it wins where the bounds cross.
fn clamp(args: &Args) -> Result<Run, Refusal> {
    let (least, most) = (args.optional_scalar("clipValueMin")?, args.optional_scalar("clipValueMax")?);
    if least.is_none() && most.is_none() {
        args.scalar(if args.operator.ends_with("Max") { "clipValueMax" } else { "clipValueMin" })?;
    }
    let (a, out) = ends(args)?;
    let domain = [least, most].into_iter().flatten().fold(a.dtype, promote_scalar);
    check_result(args, "out", &out, domain)?;
    run(move |memory| {
        let mut row = Row::read(&a, domain, memory)?;
        match &mut row {
            Row::Float(row) => row.iter_mut().filter(|x| !x.is_nan()).for_each(|x| {
                *x = least.map_or(*x, |least| x.max(least.float));
                *x = most.map_or(*x, |most| x.min(most.float));
            }),
            Row::Int(row) => row.iter_mut().for_each(|x| {
                *x = least.map_or(*x, |least| (*x).max(least.int));
                *x = most.map_or(*x, |most| (*x).min(most.int));
            }),
        }
        row.write(&out, domain, memory)
    })
}

/// Between any two types: integers wrap, floats become integers towards zero and saturate.
fn cast(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = ends(args)?;
    let dtype = args.int("dtype")?;
    if out.dtype as i64 != dtype {
        let have = out.dtype.name();
        return Err(args.invalid("out", format!("has type {have}, but dtype is {dtype}")));
    }
    run(move |memory| {
        if in_floats(a.dtype) {
            out.write_f64(memory, &a.read_f64(memory)?)
        } else {
            out.write_i64(memory, &a.read_i64(memory)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, close, noise};
    use super::*;

    #[test]
    fn the_error_function_has_its_tabulated_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, want) in [(0.5, 0.520_499_877_8), (1.0, 0.842_700_792_9), (2.0, 0.995_322_265_0)] {
            close(&[erf(x), erf(-x)], &[want, -want], 1e-10);
        }
        assert_eq!((erf(0.0), erf(7.0), erf(f64::NEG_INFINITY)), (0.0, 1.0, -1.0));
    }

    #[test]
    fn functions_satisfy_their_identities() {
        let x = noise(12, 3);
        let of = |name: &str| {
            let input = if name == "Cos" { "input" } else { "self" };
            let output = if name == "Sign" { "result" } else { "out" };
            let case = Case::new(Soc::A2, name).input(input, Dtype::F32, &[3, 4], &x);
            case.output(output, Dtype::F32, &[3, 4]).done().read(output)
        };
        let (exp, log_exp) = (of("Exp"), of("Expm1"));
        for i in 0..12 {
            let x = f64::from(x[i] as f32);
            close(&[exp[i] - 1.0], &[log_exp[i]], 1e-6);
            close(&[exp[i].ln()], &[x], 1e-6);
        }
        let both: Vec<f64> = of("Sin").iter().zip(of("Cos")).map(|(s, c)| s * s + c * c).collect();
        close(&both, &[1.0; 12], 1e-6);
        let silu: Vec<f64> = of("Sigmoid").iter().zip(&x).map(|(s, x)| s * x).collect();
        close(&of("Silu"), &silu, 1e-6);
        let product: Vec<f64> = of("Sign").iter().zip(of("Abs")).map(|(s, a)| s * a).collect();
        close(&product, &x, 1e-7);
        // tanh x = 2 σ(2x) − 1.
        let tanh: Vec<f64> = x.iter().map(|x| 2.0 * sigmoid(2.0 * x) - 1.0).collect();
        close(&of("Tanh"), &tanh, 1e-6);
        // Both forms of gelu are within 5e-4 of one another, and differ.
        close(&of("Gelu"), &x.iter().map(|&x| gelu_erf(x)).collect::<Vec<_>>(), 5e-4);
        close(&[gelu_erf(1.0), gelu_tanh(1.0)], &[0.841_344_746, 0.841_191_990], 1e-8);
    }

    #[test]
    fn piecewise_functions_bend_where_they_should() {
        let x = [-4.0, -1.0, 0.0, 1.0, 4.0];
        for layout in LAYOUTS {
            let case = |name: &str| Case::new(Soc::A2, name).laid(layout).input("self", Dtype::F32, &[5], &x);
            let read = |case: Case| case.output("out", Dtype::F32, &[5]).done().read("out");
            assert_eq!(read(case("Relu")), [0.0, 0.0, 0.0, 1.0, 4.0]);
            assert_eq!(
                read(case("Hardsigmoid")),
                [0.0, f64::from((1f32) / 3.0), 0.5, f64::from(2f32 / 3.0), 1.0]
            );
            assert_eq!(read(case("LeakyRelu").scalar("negativeSlope", 0.5)), [-2.0, -0.5, 0.0, 1.0, 4.0]);
            let clamp = case("Clamp").scalar("clipValueMin", -2.0).scalar("clipValueMax", 0.5);
            assert_eq!(read(clamp), [-2.0, -1.0, 0.0, 0.5, 0.5]);
            let elu = case("Elu").scalar("alpha", 1.0).scalar("scale", 1.0).scalar("inputScale", 1.0);
            close(&read(elu), &[(-4f64).exp() - 1.0, (-1f64).exp() - 1.0, 0.0, 1.0, 4.0], 1e-7);
            let softplus = case("Softplus").scalar("beta", 1.0).scalar("threshold", 2.0);
            close(
                &read(softplus)[1..],
                &[(1.0 + (-1f64).exp()).ln(), 2f64.ln(), (1.0 + 1f64.exp()).ln(), 4.0],
                1e-6,
            );
        }
        let case = Case::new(Soc::A2, "InplaceThreshold").input("selfRef", Dtype::F16, &[5], &x);
        let case = case.scalar("threshold", 0.0).scalar("value", 7.0).done();
        assert_eq!(case.read("selfRef"), [7.0, 7.0, 7.0, 1.0, 4.0]);
    }

    #[test]
    fn casts_round_saturate_or_wrap() {
        let cast = |from, to: Dtype, values: &[f64]| {
            let case = Case::new(Soc::Ascend950, "Cast").input("self", from, &[values.len()], values);
            case.int("dtype", to as i64).output("out", to, &[values.len()]).done().read("out")
        };
        assert_eq!(cast(Dtype::F32, Dtype::I32, &[-1.9, 2.5, 1e20]), [-1.0, 2.0, 2_147_483_647.0]);
        assert_eq!(cast(Dtype::I32, Dtype::U8, &[257.0, -1.0]), [1.0, 255.0]);
        assert_eq!(cast(Dtype::F32, Dtype::F8E4M3, &[1.07, 1000.0]), [1.125, 448.0]);
        assert_eq!(cast(Dtype::F4E2M1, Dtype::Bf16, &[1.5, -6.0, 0.5]), [1.5, -6.0, 0.5]);
        assert_eq!(cast(Dtype::F32, Dtype::Bool, &[0.0, 0.5]), [0.0, 1.0]);
        let wrong = Case::new(Soc::A2, "Cast").input("self", Dtype::F32, &[1], &[0.0]).int("dtype", 1);
        assert!(wrong.output("out", Dtype::F32, &[1]).refused().message.contains("out has type FLOAT"));
        let mode = Case::new(Soc::A2, "GeluV2").input("x", Dtype::F32, &[1], &[0.0]).int("approximate", 2);
        assert!(mode.output("y", Dtype::F32, &[1]).refused().message.contains("approximate = 2"));
    }
}
