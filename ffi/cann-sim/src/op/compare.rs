//! Comparisons, logic and choices: what yields truth values or is steered by them.

use super::promote::{Row, check_result, promote, promote_scalar};
use super::{Args, Refusal, Run, run};
use crate::view::{Dtype, Fault, Memory, Tensor, broadcast_shape};
use std::cmp::Ordering;

operators! {
    EqTensor(self: T, other: T, out: O) = tensors;
    GtTensor(self: T, other: T, out: O) = tensors;
    LeTensor(self: T, other: T, out: O) = tensors;
    NeTensor(self: T, other: T, out: O) = tensors;
    GeTensor(self: T, other: T, out: O) = tensors;
    LtTensor(self: T, other: T, out: O) = tensors;
    LogicalAnd(self: T, other: T, out: O) = logic;
    LogicalOr(self: T, other: T, out: O) = logic;
    EqScalar(self: T, other: S, out: O) = scalar;
    NeScalar(self: T, other: S, out: O) = scalar;
    GtScalar(self: T, other: S, out: O) = scalar;
    GeScalar(self: T, other: S, out: O) = scalar;
    LtScalar(self: T, other: S, out: O) = scalar;
    LeScalar(self: T, other: S, out: O) = scalar;
    LogicalNot(self: T, out: O) = not;
    SWhere(condition: T, self: T, other: T, out: O) = choose;
    InplaceMaskedFillScalar(selfRef: U, mask: T, value: S) = masked_fill;
}

/// Whether an ordering satisfies the comparison; a NaN has none and only differs.
fn holds(operator: &str, ordering: Option<Ordering>) -> bool {
    match &operator[..2] {
        "Eq" => ordering == Some(Ordering::Equal),
        "Ne" => ordering != Some(Ordering::Equal),
        "Gt" => ordering == Some(Ordering::Greater),
        "Ge" => matches!(ordering, Some(Ordering::Greater | Ordering::Equal)),
        "Lt" => ordering == Some(Ordering::Less),
        _ => matches!(ordering, Some(Ordering::Less | Ordering::Equal)),
    }
}

fn orderings(a: &Row, b: &Row) -> Vec<Option<Ordering>> {
    match (a, b) {
        (Row::Float(a), Row::Float(b)) => a.iter().zip(b).map(|(a, b)| a.partial_cmp(b)).collect(),
        (Row::Int(a), Row::Int(b)) => a.iter().zip(b).map(|(a, b)| Some(a.cmp(b))).collect(),
        // Both rows were read in one domain.
        _ => Vec::new(),
    }
}

fn write_truth(out: &Tensor, truths: &[bool], memory: &dyn Memory) -> Result<(), Fault> {
    out.write_i64(memory, &truths.iter().map(|&truth| i64::from(truth)).collect::<Vec<_>>())
}

/// Both operands, spread to the shape that the output must have.
fn operands(args: &Args) -> Result<(Tensor, Tensor, Tensor), Refusal> {
    let (a, b, out) = (args.tensor("self")?, args.tensor("other")?, args.tensor("out")?);
    let Some(shape) = broadcast_shape(&a.shape, &b.shape) else {
        return Err(
            args.invalid("other", format!("{:?} does not broadcast with self {:?}", b.shape, a.shape))
        );
    };
    args.shaped("out", out, &shape)?;
    Ok((args.spread("self", a, &shape)?, args.spread("other", b, &shape)?, out.clone()))
}

fn tensors(args: &Args) -> Result<Run, Refusal> {
    let (a, b, out) = operands(args)?;
    let (domain, operator) = (promote(a.dtype, b.dtype), args.operator);
    run(move |memory| {
        let (a, b) = (Row::read(&a, domain, memory)?, Row::read(&b, domain, memory)?);
        let truths: Vec<bool> = orderings(&a, &b).into_iter().map(|o| holds(operator, o)).collect();
        write_truth(&out, &truths, memory)
    })
}

fn scalar(args: &Args) -> Result<Run, Refusal> {
    let (a, b, out) = (args.tensor("self")?.clone(), args.scalar("other")?, args.tensor("out")?.clone());
    args.shaped("out", &out, &a.shape)?;
    let (domain, operator) = (promote_scalar(a.dtype, b), args.operator);
    run(move |memory| {
        let a = Row::read(&a, domain, memory)?;
        let b = match &a {
            Row::Float(row) => Row::Float(vec![b.float; row.len()]),
            Row::Int(row) => Row::Int(vec![b.int; row.len()]),
        };
        let truths: Vec<bool> = orderings(&a, &b).into_iter().map(|o| holds(operator, o)).collect();
        write_truth(&out, &truths, memory)
    })
}

/// Anything but zero is true, a NaN too.
fn truths(view: &Tensor, memory: &dyn Memory) -> Result<Vec<bool>, Fault> {
    Ok(match Row::read(view, view.dtype, memory)? {
        Row::Float(row) => row.into_iter().map(|x| x != 0.0).collect(),
        Row::Int(row) => row.into_iter().map(|x| x != 0).collect(),
    })
}

fn logic(args: &Args) -> Result<Run, Refusal> {
    let (a, b, out) = operands(args)?;
    let both = args.operator == "LogicalAnd";
    run(move |memory| {
        let (a, b) = (truths(&a, memory)?, truths(&b, memory)?);
        let results: Vec<bool> =
            a.iter().zip(&b).map(|(&a, &b)| if both { a && b } else { a || b }).collect();
        write_truth(&out, &results, memory)
    })
}

fn not(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = (args.tensor("self")?.clone(), args.tensor("out")?.clone());
    args.shaped("out", &out, &a.shape)?;
    run(move |memory| {
        let results: Vec<bool> = truths(&a, memory)?.into_iter().map(|truth| !truth).collect();
        write_truth(&out, &results, memory)
    })
}

fn choose(args: &Args) -> Result<Run, Refusal> {
    let (condition, a, b) = (args.tensor("condition")?, args.tensor("self")?, args.tensor("other")?);
    let out = args.tensor("out")?.clone();
    args.one_of("condition", condition, &[Dtype::Bool, Dtype::U8])?;
    let shape = broadcast_shape(&a.shape, &b.shape).and_then(|both| broadcast_shape(&both, &condition.shape));
    let Some(shape) = shape else {
        let shapes = (&condition.shape, &a.shape, &b.shape);
        return Err(args.invalid("condition", format!("does not broadcast with self and other: {shapes:?}")));
    };
    args.shaped("out", &out, &shape)?;
    let domain = promote(a.dtype, b.dtype);
    check_result(args, "out", &out, domain)?;
    let condition = args.spread("condition", condition, &shape)?;
    let (a, b) = (args.spread("self", a, &shape)?, args.spread("other", b, &shape)?);
    run(move |memory| {
        let condition = truths(&condition, memory)?;
        let row = match (Row::read(&a, domain, memory)?, Row::read(&b, domain, memory)?) {
            (Row::Float(a), Row::Float(b)) => {
                Row::Float(condition.iter().enumerate().map(|(i, &c)| if c { a[i] } else { b[i] }).collect())
            }
            (Row::Int(a), Row::Int(b)) => {
                Row::Int(condition.iter().enumerate().map(|(i, &c)| if c { a[i] } else { b[i] }).collect())
            }
            (a, _) => a,
        };
        row.write(&out, domain, memory)
    })
}

fn masked_fill(args: &Args) -> Result<Run, Refusal> {
    let (view, mask, value) = (args.tensor("selfRef")?.clone(), args.tensor("mask")?, args.scalar("value")?);
    args.one_of("mask", mask, &[Dtype::Bool])?;
    let mask = args.spread("mask", mask, &view.shape)?;
    run(move |memory| {
        let mut bits = view.read_bits(memory)?;
        let filler = if view.dtype.is_float() {
            view.dtype.encode(value.float)
        } else {
            view.dtype.encode_int(value.int)
        };
        for (bits, masked) in bits.iter_mut().zip(truths(&mask, memory)?) {
            if masked {
                *bits = filler;
            }
        }
        view.write_bits(memory, &bits)
    })
}

#[cfg(test)]
mod tests {
    use super::super::Soc;
    use super::super::testing::{Case, LAYOUTS};
    use super::*;

    #[test]
    fn comparisons_agree_with_rust_and_nan_only_differs() {
        let (a, b) = ([1.0, 2.0, f64::NAN, 3.0], [1.0, 3.0, 1.0, 2.0]);
        type Compare = fn(f64, f64) -> bool;
        let table: [(&str, Compare); 6] = [
            ("EqTensor", |a, b| a == b),
            ("NeTensor", |a, b| a != b),
            ("GtTensor", |a, b| a > b),
            ("GeTensor", |a, b| a >= b),
            ("LtTensor", |a, b| a < b),
            ("LeTensor", |a, b| a <= b),
        ];
        for (name, compare) in table {
            for layout in LAYOUTS {
                let case = Case::new(Soc::A3, name)
                    .laid(layout)
                    .input("self", Dtype::F32, &[2, 2], &a)
                    .input("other", Dtype::F32, &[2, 2], &b)
                    .output("out", Dtype::Bool, &[2, 2])
                    .done();
                let want: Vec<f64> =
                    a.iter().zip(b).map(|(&a, b)| f64::from(u8::from(compare(a, b)))).collect();
                assert_eq!(case.read("out"), want, "{name}");
            }
        }
        let case = Case::new(Soc::A3, "GtScalar").input("self", Dtype::I32, &[3], &[1.0, 2.0, 3.0]);
        assert_eq!(
            case.scalar("other", 1.5).output("out", Dtype::Bool, &[3]).done().read("out"),
            [0.0, 1.0, 1.0]
        );
    }

    #[test]
    fn choices_and_fills_follow_the_condition() {
        let case = Case::new(Soc::A3, "SWhere")
            .input("condition", Dtype::Bool, &[2, 1], &[1.0, 0.0])
            .input("self", Dtype::F16, &[2], &[1.0, 2.0])
            .input("other", Dtype::F16, &[1], &[9.0])
            .output("out", Dtype::F16, &[2, 2])
            .done();
        assert_eq!(case.read("out"), [1.0, 2.0, 9.0, 9.0]);
        let case = Case::new(Soc::A3, "InplaceMaskedFillScalar")
            .input("selfRef", Dtype::F32, &[2, 2], &[1.0, 2.0, 3.0, 4.0])
            .input("mask", Dtype::Bool, &[2], &[0.0, 1.0])
            .scalar("value", f64::NEG_INFINITY)
            .done();
        assert_eq!(case.read("selfRef"), [1.0, f64::NEG_INFINITY, 3.0, f64::NEG_INFINITY]);
        let case = Case::new(Soc::A3, "LogicalNot").input("self", Dtype::F32, &[3], &[0.0, 2.0, f64::NAN]);
        assert_eq!(case.output("out", Dtype::Bool, &[3]).done().read("out"), [1.0, 0.0, 0.0]);
        let case = Case::new(Soc::A3, "LogicalAnd")
            .input("self", Dtype::Bool, &[2], &[1.0, 1.0])
            .input("other", Dtype::I32, &[2], &[0.0, 5.0])
            .output("out", Dtype::Bool, &[2])
            .done();
        assert_eq!(case.read("out"), [0.0, 1.0]);
    }
}
