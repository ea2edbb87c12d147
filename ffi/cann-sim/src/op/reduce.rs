//! Reductions and running sums along dimensions.

use super::promote::{Row, check_result, in_floats};
use super::{Args, INDICES, Refusal, Run, run};
use crate::view::{Dtype, Tensor};

operators! {
    ReduceSum(self: T, dims: IA, keepDims: B, dtype: DT, out: O) = sum;
    Mean(self: T, dim: IA, keepDim: B, dtype: DT, out: O) = mean;
    Amax(self: T, dim: IA, keepDim: B, out: O) = extreme;
    Amin(self: T, dim: IA, keepDim: B, out: O) = extreme;
    Max(self: T, out: O) = extreme_of_all;
    Min(self: T, out: O) = extreme_of_all;
    MaxDim(self: T, dim: I64, keepdim: B, out: O, indices: O) = extreme_with_index;
    MinDim(self: T, dim: I64, keepdim: B, out: O, indices: O) = extreme_with_index;
    Prod(self: T, dtype: DT, out: O) = product;
    Norm(self: T, pScalar: S, dim: IA, keepdim: B, out: O) = norm;
    Cumsum(self: T, dim: I64, dtype: DT, out: O) = cumsum;
    CumsumV2(self: T, dim: I64, exclusive: B, reverse: B, out: O) = cumsum;
    ArgMax(self: T, dim: I64, keepdim: B, out: O) = arg_max;
}

/// A view with the reduced dimensions last, and how many elements one result takes.
struct Plan {
    view: Tensor,
    count: usize,
    results: Vec<usize>,
}

/// `axes` empty: all of them.
fn plan(tensor: &Tensor, axes: &[usize], keep: bool) -> Plan {
    let all: Vec<usize> = (0..tensor.rank()).collect();
    let reduced = |axis: &usize| axes.is_empty() || axes.contains(axis);
    let order: Vec<usize> =
        all.iter().filter(|a| !reduced(a)).chain(all.iter().filter(|a| reduced(a))).copied().collect();
    let count = all.iter().filter(|a| reduced(a)).map(|&a| tensor.shape[a]).product();
    let results = all
        .iter()
        .filter(|a| keep || !reduced(a))
        .map(|a| if reduced(a) { 1 } else { tensor.shape[*a] })
        .collect();
    Plan { view: tensor.permute(&order), count, results }
}

/// The lanes of a plan's row; lanes without elements are as many as there are results.
fn lanes<T>(row: &[T], count: usize, results: usize) -> impl Iterator<Item = &[T]> {
    (0..results).map(move |i| &row[i * count..(i + 1) * count])
}

fn arguments(args: &Args, dims: &str, keep: &str) -> Result<(Plan, Tensor, Dtype), Refusal> {
    let (a, out) = (args.tensor("self")?, args.tensor("out")?);
    let axes = args.axes(dims, args.ints(dims)?, a.rank())?;
    let plan = plan(a, &axes, args.flag(keep)?);
    // Nothing documented decides between no dimension and one of 1 for what is left of all of them.
    if !(plan.results.is_empty() && out.shape == [1]) {
        args.shaped("out", out, &plan.results)?;
    }
    Ok((plan, out.clone(), a.dtype))
}

/// The `dtype` argument, which the output must have.
fn result_type(args: &Args, out: &Tensor) -> Result<(), Refusal> {
    let dtype = args.int("dtype")?;
    if dtype == out.dtype as i64 {
        return Ok(());
    }
    Err(args.invalid("out", format!("has type {}, but dtype is {dtype}", out.dtype.name())))
}

fn sum(args: &Args) -> Result<Run, Refusal> {
    let (plan, out, from) = arguments(args, "dims", "keepDims")?;
    result_type(args, &out)?;
    let integer = !in_floats(from) && !in_floats(out.dtype);
    run(move |memory| {
        let results = out.numel();
        if integer {
            let row = plan.view.read_i64(memory)?;
            let sums: Vec<i64> = lanes(&row, plan.count, results)
                .map(|lane| lane.iter().fold(0, |sum: i64, x| sum.wrapping_add(*x)))
                .collect();
            return out.write_i64(memory, &sums);
        }
        let row = plan.view.read_f64(memory)?;
        let sums: Vec<f64> = lanes(&row, plan.count, results).map(|lane| lane.iter().sum()).collect();
        out.write_f64(memory, &sums)
    })
}

fn mean(args: &Args) -> Result<Run, Refusal> {
    let (plan, out, _) = arguments(args, "dim", "keepDim")?;
    result_type(args, &out)?;
    if !out.dtype.is_float() {
        return Err(args.invalid("dtype", format!("is {}; a mean is a float", out.dtype.name())));
    }
    run(move |memory| {
        let row = plan.view.read_f64(memory)?;
        let means = lanes(&row, plan.count, out.numel());
        let means: Vec<f64> = means.map(|lane| lane.iter().sum::<f64>() / plan.count as f64).collect();
        out.write_f64(memory, &means)
    })
}

/// Index of the extreme of a lane: the first of equals; a NaN is more extreme than any number.
fn extreme_at(lane: &[f64], largest: bool) -> usize {
    let mut best = 0;
    for (i, &x) in lane.iter().enumerate() {
        let better = if largest { x > lane[best] } else { x < lane[best] };
        if !lane[best].is_nan() && (better || x.is_nan()) {
            best = i;
        }
    }
    best
}

fn int_extreme_at(lane: &[i64], largest: bool) -> usize {
    (0..lane.len()).rev().fold(lane.len() - 1, |best, i| {
        let better = if largest { lane[i] >= lane[best] } else { lane[i] <= lane[best] };
        if better { i } else { best }
    })
}

/// The places of the extremes, lane by lane.
fn places(row: &Row, count: usize, results: usize, largest: bool) -> Vec<usize> {
    match row {
        Row::Float(row) => lanes(row, count, results).map(|lane| extreme_at(lane, largest)).collect(),
        Row::Int(row) => lanes(row, count, results).map(|lane| int_extreme_at(lane, largest)).collect(),
    }
}

/// Writes the extremes of all lanes, and their places where they are wanted.
fn write_extremes(
    args: &Args,
    plan: Plan,
    out: Option<Tensor>,
    indices: Option<Tensor>,
) -> Result<Run, Refusal> {
    let results = plan.results.iter().product::<usize>();
    if plan.count == 0 && results > 0 {
        return Err(args.invalid("self", "has no elements to choose from"));
    }
    let largest = args.operator.contains("Max") || args.operator.contains("max");
    run(move |memory| {
        let row = Row::read(&plan.view, plan.view.dtype, memory)?;
        let places = places(&row, plan.count, results, largest);
        if let Some(out) = &out {
            let at = |i: usize| i * plan.count + places[i];
            let best = match &row {
                Row::Float(row) => Row::Float((0..results).map(|i| row[at(i)]).collect()),
                Row::Int(row) => Row::Int((0..results).map(|i| row[at(i)]).collect()),
            };
            best.write(out, plan.view.dtype, memory)?;
        }
        match &indices {
            Some(indices) => indices.write_i64(memory, &places.iter().map(|&i| i as i64).collect::<Vec<_>>()),
            None => Ok(()),
        }
    })
}

fn extreme(args: &Args) -> Result<Run, Refusal> {
    let (plan, out, from) = arguments(args, "dim", "keepDim")?;
    check_result(args, "out", &out, from)?;
    write_extremes(args, plan, Some(out), None)
}

fn extreme_of_all(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = (args.tensor("self")?, args.tensor("out")?);
    check_result(args, "out", out, a.dtype)?;
    args.shaped("out", out, &[])?;
    write_extremes(args, plan(a, &[], false), Some(out.clone()), None)
}

fn extreme_with_index(args: &Args) -> Result<Run, Refusal> {
    let (a, out, indices) = (args.tensor("self")?, args.tensor("out")?, args.tensor("indices")?);
    let plan = one_axis(args, a, args.flag("keepdim")?)?;
    args.shaped("out", out, &plan.results)?;
    args.shaped("indices", indices, &plan.results)?;
    args.one_of("indices", indices, INDICES)?;
    check_result(args, "out", out, a.dtype)?;
    write_extremes(args, plan, Some(out.clone()), Some(indices.clone()))
}

fn arg_max(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = (args.tensor("self")?, args.tensor("out")?);
    let plan = one_axis(args, a, args.flag("keepdim")?)?;
    args.shaped("out", out, &plan.results)?;
    args.one_of("out", out, INDICES)?;
    write_extremes(args, plan, None, Some(out.clone()))
}

fn one_axis(args: &Args, tensor: &Tensor, keep: bool) -> Result<Plan, Refusal> {
    let axis = args.axis("dim", args.int("dim")?, tensor.rank())?;
    Ok(if tensor.rank() == 0 { plan(tensor, &[], keep) } else { plan(tensor, &[axis], keep) })
}

fn product(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = (args.tensor("self")?.clone(), args.tensor("out")?.clone());
    result_type(args, &out)?;
    args.shaped("out", &out, &[])?;
    run(move |memory| match Row::read(&a, out.dtype, memory)? {
        Row::Float(row) => out.write_f64(memory, &[row.iter().product()]),
        Row::Int(row) => {
            out.write_i64(memory, &[row.iter().fold(1, |product: i64, x| product.wrapping_mul(*x))])
        }
    })
}

/// (Σ |x|^p)^(1/p); the count of non-zeros for p = 0, extremes for infinite p.
fn norm(args: &Args) -> Result<Run, Refusal> {
    let (plan, out, from) = arguments(args, "dim", "keepdim")?;
    let p = args.optional_scalar("pScalar")?.map_or(2.0, |p| p.float);
    if !from.is_float() {
        return Err(args.invalid("self", format!("has type {}, not a float's", from.name())));
    }
    check_result(args, "out", &out, from)?;
    run(move |memory| {
        let row = plan.view.read_f64(memory)?;
        let norms = lanes(&row, plan.count, out.numel()).map(|lane| {
            let sizes = lane.iter().map(|x| x.abs());
            match p {
                0.0 => sizes.filter(|x| *x != 0.0).count() as f64,
                f64::INFINITY => sizes.fold(0.0, f64::max),
                f64::NEG_INFINITY => sizes.fold(f64::INFINITY, f64::min),
                p => sizes.map(|x| x.powf(p)).sum::<f64>().powf(1.0 / p),
            }
        });
        out.write_f64(memory, &norms.collect::<Vec<_>>())
    })
}

/// The view with a dimension last, and its size.
pub(super) fn lanes_along(tensor: &Tensor, axis: usize) -> (Tensor, usize) {
    if tensor.rank() == 0 {
        return (tensor.clone(), 1);
    }
    let order: Vec<usize> = (0..tensor.rank()).filter(|&a| a != axis).chain([axis]).collect();
    (tensor.permute(&order), tensor.shape[axis])
}

fn cumsum(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = (args.tensor("self")?, args.tensor("out")?);
    args.shaped("out", out, &a.shape)?;
    let (exclusive, reverse) = if args.operator == "CumsumV2" {
        (args.flag("exclusive")?, args.flag("reverse")?)
    } else {
        result_type(args, out)?;
        (false, false)
    };
    let axis = args.axis("dim", args.int("dim")?, a.rank())?;
    let ((from, count), (to, _)) = (lanes_along(a, axis), lanes_along(out, axis));
    run(move |memory| {
        let order = |i: usize| if reverse { count - 1 - i } else { i };
        match Row::read(&from, to.dtype, memory)? {
            Row::Float(mut row) => {
                for lane in row.chunks_mut(count.max(1)) {
                    let mut sum = 0.0;
                    for i in (0..count).map(order) {
                        let before = sum;
                        sum += lane[i];
                        lane[i] = if exclusive { before } else { sum };
                    }
                }
                to.write_f64(memory, &row)
            }
            Row::Int(mut row) => {
                for lane in row.chunks_mut(count.max(1)) {
                    let mut sum = 0i64;
                    for i in (0..count).map(order) {
                        let before = sum;
                        sum = sum.wrapping_add(lane[i]);
                        lane[i] = if exclusive { before } else { sum };
                    }
                }
                to.write_i64(memory, &row)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS, close, noise};
    use super::*;

    fn base(name: &str, layout: super::super::testing::Layout, values: &[f64]) -> Case {
        Case::new(Soc::A2, name).laid(layout).input("self", Dtype::F32, &[2, 3, 4], values)
    }

    #[test]
    fn sums_over_any_dimensions_agree_with_a_direct_loop() {
        let x = noise(24, 5);
        for layout in LAYOUTS {
            let case = base("ReduceSum", layout, &x).ints("dims", &[0, -1]).flag("keepDims", true);
            let got = case.output("out", Dtype::F32, &[1, 3, 1]).done().read("out");
            let want: Vec<f64> = (0..3)
                .map(|j| {
                    (0..2).flat_map(|i| (0..4).map(move |k| (i, k))).map(|(i, k)| x[i * 12 + j * 4 + k]).sum()
                })
                .collect();
            close(&got, &want, 1e-6);
            let case = base("Mean", layout, &x).ints("dim", &[1]).output("out", Dtype::F32, &[2, 4]).done();
            let want: Vec<f64> =
                (0..8).map(|r| (0..3).map(|j| x[r / 4 * 12 + j * 4 + r % 4]).sum::<f64>() / 3.0).collect();
            close(&case.read("out"), &want, 1e-6);
            let all = base("ReduceSum", layout, &x).ints("dims", &[]).output("out", Dtype::F32, &[]).done();
            close(&all.read("out"), &[x.iter().sum()], 1e-6);
            let one = base("ReduceSum", layout, &x).ints("dims", &[]).output("out", Dtype::F32, &[1]).done();
            assert_eq!(one.read("out"), all.read("out"));
        }
        let kept = base("ReduceSum", LAYOUTS[0], &x).ints("dims", &[0]).output("out", Dtype::F32, &[1]);
        assert!(kept.refused().message.contains("wanted: [3, 4]"));
        let none = Case::new(Soc::A2, "ReduceSum").input("self", Dtype::F32, &[2, 0], &[]).ints("dims", &[1]);
        assert_eq!(none.output("out", Dtype::F32, &[2]).done().read("out"), [0.0, 0.0]);
        let bools = Case::new(Soc::A2, "ReduceSum").input("self", Dtype::Bool, &[3], &[1.0, 0.0, 1.0]);
        let bools = bools.ints("dims", &[0]).int("dtype", Dtype::I64 as i64).output("out", Dtype::I64, &[]);
        assert_eq!(bools.done().read("out"), [2.0]);
    }

    #[test]
    fn extremes_and_their_places() {
        let x = [3.0, 9.0, 9.0, -1.0, f64::NAN, 2.0];
        let case = Case::new(Soc::A2, "MaxDim").input("self", Dtype::F32, &[2, 3], &x).int("dim", 1);
        let case = case.output("out", Dtype::F32, &[2]).output("indices", Dtype::I64, &[2]).done();
        assert_eq!(case.read("indices"), [1.0, 1.0]);
        assert!(case.read("out")[0] == 9.0 && case.read("out")[1].is_nan());
        let case = Case::new(Soc::A2, "ArgMax").input("self", Dtype::I32, &[3], &[1.0, 5.0, 5.0]);
        assert_eq!(case.output("out", Dtype::I32, &[]).done().read("out"), [1.0]);
        let case =
            Case::new(Soc::A2, "Amin").input("self", Dtype::F32, &[3], &[1.0, -5.0, 5.0]).ints("dim", &[]);
        assert_eq!(case.output("out", Dtype::F32, &[]).done().read("out"), [-5.0]);
    }

    #[test]
    fn norms_have_their_closed_forms() {
        let norm = |p: f64| {
            let case = Case::new(Soc::A2, "Norm").input("self", Dtype::F32, &[1, 3], &[3.0, 0.0, -4.0]);
            let case = case.scalar("pScalar", p).ints("dim", &[1]).flag("keepdim", true);
            case.output("out", Dtype::F32, &[1, 1]).done().read("out")[0]
        };
        assert_eq!([0.0, 1.0, 2.0, f64::INFINITY, f64::NEG_INFINITY].map(norm), [2.0, 7.0, 5.0, 4.0, 0.0]);
        let product = Case::new(Soc::A2, "Prod").input("self", Dtype::F32, &[3], &[2.0, 3.0, -4.0]);
        assert_eq!(product.output("out", Dtype::F32, &[]).done().read("out"), [-24.0]);
    }

    #[test]
    fn running_sums_run_along_their_dimension() {
        let ones = vec![1.0; 24];
        for layout in LAYOUTS {
            let case =
                base("Cumsum", layout, &ones).int("dim", 1).output("out", Dtype::F32, &[2, 3, 4]).done();
            let want: Vec<f64> = (0..24).map(|i| (i / 4 % 3 + 1) as f64).collect();
            assert_eq!(case.read("out"), want);
        }
        let case = Case::new(Soc::A2, "CumsumV2").input("self", Dtype::I32, &[3], &[1.0, 2.0, 4.0]);
        let case = case.flag("exclusive", true).flag("reverse", true).output("out", Dtype::I32, &[3]);
        assert_eq!(case.done().read("out"), [6.0, 4.0, 0.0]);
    }
}
