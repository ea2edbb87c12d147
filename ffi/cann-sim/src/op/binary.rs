//! Arithmetic of two tensors, or of a tensor and a scalar.

use super::promote::{Row, check_result, in_floats, promote, promote_scalar};
use super::{Args, Refusal, Run, Scalar, run};
use crate::view::{Dtype, Tensor, broadcast_shape};

operators! {
    Add(self: T, other: T, alpha: S, out: O) = tensors;
    Sub(self: T, other: T, alpha: S, out: O) = tensors;
    Mul(self: T, other: T, out: O) = tensors;
    Div(self: T, other: T, out: O) = tensors;
    Maximum(self: T, other: T, out: O) = tensors;
    Minimum(self: T, other: T, out: O) = tensors;
    PowTensorTensor(self: T, exponent: T, out: O) = tensors;
    BitwiseAndTensor(self: T, other: T, out: O) = tensors;
    BitwiseOrTensor(self: T, other: T, out: O) = tensors;
    BitwiseXorTensor(self: T, other: T, out: O) = tensors;
    DivMod(self: T, other: T, mode: Int, out: O) = tensors;
    FmodTensor(self: T, other: T, out: O) = tensors;
    InplaceAdd(selfRef: U, other: T, alpha: S) = tensors;
    InplaceSub(selfRef: U, other: T, alpha: S) = tensors;
    InplaceMul(selfRef: U, other: T) = tensors;
    InplaceDiv(selfRef: U, other: T) = tensors;
    InplacePowTensorTensor(selfRef: U, exponent: T) = tensors;
    Adds(self: T, other: S, alpha: S, out: O) = scalar;
    Subs(self: T, other: S, alpha: S, out: O) = scalar;
    Muls(self: T, other: S, out: O) = scalar;
    Divs(self: T, other: S, out: O) = scalar;
    PowTensorScalar(self: T, exponent: S, out: O) = scalar;
    FloorDivides(self: T, other: S, out: O) = scalar;
    RemainderTensorScalar(self: T, other: S, out: O) = scalar;
    BitwiseAndScalar(self: T, other: S, out: O) = scalar;
    InplaceAdds(selfRef: U, other: S, alpha: S) = scalar;
    InplaceSubs(selfRef: U, other: S, alpha: S) = scalar;
    InplaceMuls(selfRef: U, other: S) = scalar;
    InplaceDivs(selfRef: U, other: S) = scalar;
    PowScalarTensor(self: S, exponent: T, out: O) = scalar_to_the;
    Addcmul(self: T, tensor1: T, tensor2: T, value: S, out: O) = add_product;
    Addcdiv(self: T, tensor1: T, tensor2: T, value: S, out: O) = add_product;
}

/// What is done with a pair of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pair {
    /// a + alpha · b.
    Add(Scalar),
    Sub(Scalar),
    Mul,
    Div,
    Maximum,
    Minimum,
    Pow,
    FloorDivide,
    /// The quotient without its fraction.
    TruncDivide,
    Remainder,
    /// The remainder of that: it has the sign of a.
    Fmod,
    And,
    Or,
    Xor,
}

impl Pair {
    fn of(args: &Args) -> Result<Pair, Refusal> {
        let name = args.operator.strip_prefix("Inplace").unwrap_or(args.operator);
        Ok(match name {
            "Add" | "Adds" => Pair::Add(args.scalar("alpha")?),
            "Sub" | "Subs" => Pair::Sub(args.scalar("alpha")?),
            "Mul" | "Muls" => Pair::Mul,
            "Div" | "Divs" => Pair::Div,
            "Maximum" => Pair::Maximum,
            "Minimum" => Pair::Minimum,
            "PowTensorTensor" | "PowTensorScalar" | "PowScalarTensor" => Pair::Pow,
            "FloorDivides" => Pair::FloorDivide,
            "RemainderTensorScalar" => Pair::Remainder,
            "FmodTensor" => Pair::Fmod,
            "DivMod" => match args.int("mode")? {
                0 => Pair::Div,
                1 => Pair::TruncDivide,
                2 => Pair::FloorDivide,
                mode => return Err(args.unknown_mode("mode", mode)),
            },
            "BitwiseAndScalar" | "BitwiseAndTensor" => Pair::And,
            "BitwiseOrTensor" => Pair::Or,
            "BitwiseXorTensor" => Pair::Xor,
            other => return Err(args.unknown_mode("operator", other)),
        })
    }

    /// The type computed in, where the operands have a common one.
    fn domain(self, common: Dtype) -> Dtype {
        // A quotient of integers is a float.
        if self == Pair::Div && !in_floats(common) { Dtype::F32 } else { common }
    }

    /// Refuses what has no meaning in floats.
    fn check(self, args: &Args, domain: Dtype) -> Result<(), Refusal> {
        if matches!(self, Pair::And | Pair::Or | Pair::Xor) && in_floats(domain) {
            return Err(args.invalid("self", "must be of an integer type or BOOL"));
        }
        Ok(())
    }

    fn floats(self, a: f64, b: f64) -> f64 {
        match self {
            Pair::Add(alpha) => a + alpha.float * b,
            Pair::Sub(alpha) => a - alpha.float * b,
            Pair::Mul => a * b,
            Pair::Div => a / b,
            Pair::Maximum if a.is_nan() || b.is_nan() => f64::NAN,
            Pair::Maximum => a.max(b),
            Pair::Minimum if a.is_nan() || b.is_nan() => f64::NAN,
            Pair::Minimum => a.min(b),
            Pair::Pow => a.powf(b),
            Pair::FloorDivide => (a / b).floor(),
            Pair::TruncDivide => (a / b).trunc(),
            Pair::Fmod => a % b,
            // The sign of the divisor, as Python has it.
            Pair::Remainder => {
                let rest = a % b;
                if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }
            }
            // Refused before: bits are those of integers.
            Pair::And | Pair::Or | Pair::Xor => f64::NAN,
        }
    }

    fn ints(self, a: i64, b: i64) -> i64 {
        match self {
            Pair::Add(alpha) => a.wrapping_add(alpha.int.wrapping_mul(b)),
            Pair::Sub(alpha) => a.wrapping_sub(alpha.int.wrapping_mul(b)),
            Pair::Mul => a.wrapping_mul(b),
            Pair::Maximum => a.max(b),
            Pair::Minimum => a.min(b),
            Pair::And => a & b,
            Pair::Or => a | b,
            Pair::Xor => a ^ b,
            Pair::Pow => match u32::try_from(b) {
                Ok(exponent) => a.wrapping_pow(exponent),
                // Integer powers below 1: only ±1 have any.
                Err(_) => match a {
                    1 => 1,
                    -1 => 1 - 2 * (b & 1),
                    _ => 0,
                },
            },
            // The device gives no documented quotient by zero; the simulator gives −1 as the hardware divider does.
            Pair::Div | Pair::FloorDivide | Pair::TruncDivide if b == 0 => -1,
            Pair::TruncDivide => a.wrapping_div(b),
            Pair::Fmod if b == 0 => 0,
            Pair::Fmod => a.wrapping_rem(b),
            Pair::Div | Pair::FloorDivide => {
                let quotient = a.wrapping_div(b);
                if a.wrapping_rem(b) != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient }
            }
            Pair::Remainder if b == 0 => 0,
            Pair::Remainder => {
                let rest = a.wrapping_rem(b);
                if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
            }
        }
    }

    fn rows(self, a: Row, b: Row) -> Row {
        match (a, b) {
            (Row::Float(a), Row::Float(b)) => Row::Float(match self {
                // The commonest two in loops of their own.
                Pair::Mul => pairwise(a, &b, |a, b| a * b),
                Pair::Add(alpha) => pairwise(a, &b, |a, b| a + alpha.float * b),
                _ => pairwise(a, &b, |a, b| self.floats(a, b)),
            }),
            (Row::Int(a), Row::Int(b)) => Row::Int(pairwise(a, &b, |a, b| self.ints(a, b))),
            // Both rows were read in one domain.
            (a, _) => a,
        }
    }
}

/// A function of each pair.
fn pairwise<N: Copy>(mut a: Vec<N>, b: &[N], f: impl Fn(N, N) -> N) -> Vec<N> {
    a.iter_mut().zip(b).for_each(|(a, &b)| *a = f(*a, b));
    a
}

/// The first operand and the result: one tensor in place, two otherwise.
fn ends(args: &Args) -> Result<(&Tensor, &Tensor), Refusal> {
    if args.operator.starts_with("Inplace") {
        let both = args.tensor("selfRef")?;
        Ok((both, both))
    } else {
        Ok((args.tensor("self")?, args.tensor("out")?))
    }
}

fn tensors(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = ends(args)?;
    let second = if args.operator.contains("Pow") { "exponent" } else { "other" };
    let b = args.tensor(second)?;
    let pair = Pair::of(args)?;
    for (name, tensor) in [("self", a), (second, b)] {
        computable(args, name, tensor.dtype)?;
    }
    let Some(shape) = broadcast_shape(&a.shape, &b.shape) else {
        return Err(args.invalid(second, format!("{:?} does not broadcast with self {:?}", b.shape, a.shape)));
    };
    args.shaped("out", out, &shape)?;
    let domain = pair.domain(promote(a.dtype, b.dtype));
    pair.check(args, domain)?;
    check_result(args, "out", out, domain)?;
    let (a, b) = (args.spread("self", a, &shape)?, args.spread(second, b, &shape)?);
    let out = out.clone();
    run(move |memory| {
        let rows = (Row::read(&a, domain, memory)?, Row::read(&b, domain, memory)?);
        pair.rows(rows.0, rows.1).write(&out, domain, memory)
    })
}

fn scalar(args: &Args) -> Result<Run, Refusal> {
    let (a, out) = ends(args)?;
    let name = if args.operator == "PowTensorScalar" { "exponent" } else { "other" };
    let b = args.scalar(name)?;
    let pair = Pair::of(args)?;
    computable(args, "self", a.dtype)?;
    args.shaped("out", out, &a.shape)?;
    let domain = pair.domain(promote_scalar(a.dtype, b));
    pair.check(args, domain)?;
    check_result(args, "out", out, domain)?;
    let (a, out) = (a.clone(), out.clone());
    run(move |memory| {
        let row = Row::read(&a, domain, memory)?;
        let other = match &row {
            Row::Float(row) => Row::Float(vec![b.float; row.len()]),
            Row::Int(row) => Row::Int(vec![b.int; row.len()]),
        };
        pair.rows(row, other).write(&out, domain, memory)
    })
}

fn scalar_to_the(args: &Args) -> Result<Run, Refusal> {
    let (base, exponent, out) = (args.scalar("self")?, args.tensor("exponent")?, args.tensor("out")?);
    computable(args, "exponent", exponent.dtype)?;
    args.shaped("out", out, &exponent.shape)?;
    let domain = promote_scalar(exponent.dtype, base);
    check_result(args, "out", out, domain)?;
    let (exponent, out) = (exponent.clone(), out.clone());
    run(move |memory| {
        let exponents = Row::read(&exponent, domain, memory)?;
        let bases = match &exponents {
            Row::Float(row) => Row::Float(vec![base.float; row.len()]),
            Row::Int(row) => Row::Int(vec![base.int; row.len()]),
        };
        Pair::Pow.rows(bases, exponents).write(&out, domain, memory)
    })
}

/// self + value · tensor1 · tensor2, or by the quotient.
fn add_product(args: &Args) -> Result<Run, Refusal> {
    let names = ["self", "tensor1", "tensor2"];
    let mut views = Vec::new();
    let mut shape = Vec::new();
    for name in names {
        let tensor = args.tensor(name)?;
        args.one_of(name, tensor, super::FLOATS)?;
        shape = broadcast_shape(&shape, &tensor.shape)
            .ok_or_else(|| args.invalid(name, format!("{:?} does not broadcast", tensor.shape)))?;
        views.push(tensor);
    }
    let (out, value) = (args.tensor("out")?.clone(), args.scalar("value")?.float);
    args.shaped("out", &out, &shape)?;
    let domain = views.iter().fold(views[0].dtype, |common, view| promote(common, view.dtype));
    check_result(args, "out", &out, domain)?;
    let spread: Vec<Tensor> = views
        .iter()
        .zip(names)
        .map(|(view, name)| args.spread(name, view, &shape))
        .collect::<Result<_, _>>()?;
    let divides = args.operator == "Addcdiv";
    run(move |memory| {
        let [a, b, c] = [&spread[0], &spread[1], &spread[2]].map(|view| view.read_f64(memory));
        let (mut a, b, c) = (a?, b?, c?);
        for (i, a) in a.iter_mut().enumerate() {
            *a += value * if divides { b[i] / c[i] } else { b[i] * c[i] };
        }
        Row::Float(a).write(&out, domain, memory)
    })
}

/// Types that arithmetic takes: all but packed and narrow ones.
fn computable(args: &Args, name: &str, dtype: Dtype) -> Result<(), Refusal> {
    if dtype.is_float() || dtype.is_int() || dtype == Dtype::Bool {
        return Ok(());
    }
    Err(args.invalid(name, format!("has type {}, which arithmetic does not take", dtype.name())))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, LAYOUTS, noise};
    use super::super::{INVALID, NULL_POINTER, Soc};
    use super::*;
    use crate::view::testing::BASE;

    #[test]
    fn sums_broadcast_and_scale_in_any_layout() {
        let (a, b) = (noise(6, 1), noise(3, 2));
        for layout in LAYOUTS {
            let case = Case::new(Soc::A2, "Add")
                .laid(layout)
                .input("self", Dtype::F32, &[2, 3], &a)
                .input("other", Dtype::F32, &[3], &b)
                .scalar("alpha", 2.0)
                .output("out", Dtype::F32, &[2, 3])
                .done();
            let want: Vec<f64> = (0..6).map(|i| f64::from((a[i] + 2.0 * b[i % 3]) as f32)).collect();
            assert_eq!(case.read("out"), want, "{layout:?}");
        }
    }

    #[test]
    fn integers_stay_exact_and_wrap() {
        let large = ((1i64 << 53) + 1) as u64;
        let mut case = Case::new(Soc::A2, "Mul").output("out", Dtype::I64, &[1]);
        let factors = case.allocate(Dtype::I64, &[1]);
        factors.write_bits(&case.arena, &[large]).unwrap();
        let one = case.make(Dtype::I64, &[1], &[3.0]);
        let case = case
            .set("self", super::super::Value::Tensor(Some(factors)))
            .set("other", super::super::Value::Tensor(Some(one)))
            .done();
        assert_eq!(case.tensor("out").read_i64(&case.arena).unwrap(), [3 * large as i64]);
        let case = Case::new(Soc::A2, "InplaceAdds")
            .input("selfRef", Dtype::I8, &[2], &[127.0, -128.0])
            .int_scalar("other", 1)
            .int_scalar("alpha", 1)
            .done();
        assert_eq!(case.read("selfRef"), [-128.0, -127.0]);
    }

    #[test]
    fn quotients_remainders_and_powers_follow_python() {
        let pair = |name: &str, values: &[f64], by: f64| {
            let key = if name.starts_with("Pow") { "exponent" } else { "other" };
            let shape = [values.len()];
            let case = Case::new(Soc::A2, name).input("self", Dtype::F32, &shape, values);
            case.scalar(key, by).output("out", Dtype::F32, &shape).done().read("out")
        };
        assert_eq!(pair("RemainderTensorScalar", &[-7.0, 7.0, 6.0], 3.0), [2.0, 1.0, 0.0]);
        assert_eq!(pair("FloorDivides", &[-7.0, 7.0], 2.0), [-4.0, 3.0]);
        assert_eq!(pair("PowTensorScalar", &[4.0, 9.0], 0.5), [2.0, 3.0]);
        let case = Case::new(Soc::A2, "Div")
            .input("self", Dtype::I32, &[2], &[1.0, -3.0])
            .input("other", Dtype::I32, &[1], &[2.0])
            .output("out", Dtype::F32, &[2])
            .done();
        assert_eq!(case.read("out"), [0.5, -1.5]);
        let case = Case::new(Soc::A2, "PowScalarTensor")
            .scalar("self", 2.0)
            .input("exponent", Dtype::F32, &[3], &[0.0, 3.0, -1.0])
            .output("out", Dtype::F32, &[3])
            .done();
        assert_eq!(case.read("out"), [1.0, 8.0, 0.5]);
    }

    #[test]
    fn integers_divide_towards_zero_and_combine_bit_by_bit() {
        let pair = |case: Case, a: &[f64], b: &[f64]| {
            let case =
                case.input("self", Dtype::I32, &[a.len()], a).input("other", Dtype::I32, &[b.len()], b);
            case.output("out", Dtype::I32, &[a.len()]).done().read("out")
        };
        let (a, b) = ([-7.0, 7.0, -7.0, 7.0], [2.0, -2.0, -2.0, 2.0]);
        assert_eq!(pair(Case::new(Soc::A2, "DivMod").int("mode", 1), &a, &b), [-3.0, -3.0, 3.0, 3.0]);
        assert_eq!(pair(Case::new(Soc::A2, "DivMod").int("mode", 2), &a, &b), [-4.0, -4.0, 3.0, 3.0]);
        assert_eq!(pair(Case::new(Soc::A2, "FmodTensor"), &a, &b), [-1.0, 1.0, -1.0, 1.0]);
        for (name, want) in [("BitwiseAndTensor", 8.0), ("BitwiseOrTensor", 14.0), ("BitwiseXorTensor", 6.0)]
        {
            assert_eq!(pair(Case::new(Soc::A2, name), &[12.0], &[10.0]), [want], "{name}");
        }
        let floats = Case::new(Soc::A2, "BitwiseOrTensor").input("self", Dtype::F32, &[1], &[0.0]);
        let floats = floats.input("other", Dtype::F32, &[1], &[0.0]).output("out", Dtype::F32, &[1]);
        assert!(floats.refused().message.contains("integer"));
    }

    #[test]
    fn arguments_are_checked_and_named() {
        let add = || Case::new(Soc::A2, "Add").scalar("alpha", 1.0);
        let null = add().output("out", Dtype::F32, &[1]).refused();
        assert_eq!((null.status, null.message.as_str()), (NULL_POINTER, "aclnnAdd: self is a null pointer"));
        let shapes = add()
            .input("self", Dtype::F32, &[2], &[0.0; 2])
            .input("other", Dtype::F32, &[3], &[0.0; 3])
            .output("out", Dtype::F32, &[3])
            .refused();
        assert!(shapes.status == INVALID && shapes.message.contains("other [3]"), "{shapes:?}");
        let narrow = add()
            .input("self", Dtype::F32, &[1], &[0.0])
            .input("other", Dtype::F32, &[1], &[0.0])
            .output("out", Dtype::I32, &[1])
            .refused();
        assert!(narrow.message.contains("INT32"), "{narrow:?}");
        let old = Case::new(Soc::Ascend310P, "Mul").input("self", Dtype::Bf16, &[1], &[0.0]);
        assert!(old.output("out", Dtype::Bf16, &[1]).refused().message.contains("Ascend310P"));
    }

    #[test]
    fn nothing_is_done_with_nothing() {
        let case = Case::new(Soc::A2, "Mul")
            .input("self", Dtype::F32, &[0, 3], &[])
            .input("other", Dtype::F32, &[3], &[1.0; 3])
            .output("out", Dtype::F32, &[0, 3])
            .done();
        assert!(case.read("out").is_empty());
        assert_eq!(Tensor::contiguous(Dtype::F32, &[0], BASE).numel(), 0);
    }

    #[test]
    fn products_add_to_a_third() {
        let case = |name: &str| {
            Case::new(Soc::A2, name)
                .input("self", Dtype::F32, &[2], &[1.0, 2.0])
                .input("tensor1", Dtype::F32, &[2], &[3.0, 4.0])
                .input("tensor2", Dtype::F32, &[1], &[2.0])
                .scalar("value", 0.5)
                .output("out", Dtype::F32, &[2])
                .done()
                .read("out")
        };
        assert_eq!(case("Addcmul"), [4.0, 6.0]);
        assert_eq!(case("Addcdiv"), [1.75, 3.0]);
    }
}
