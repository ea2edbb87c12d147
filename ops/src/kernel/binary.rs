//! Arithmetic and logic on two operands with broadcasting, the second of which may be a number.

use super::broadcast::{joint_shape, stretched};
use super::edges::{FLOATS, edges};
use super::rounding::{compute_type, holds_integer, ulps, wrapped};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, Shape, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, rounded, streaming_cost,
};

/// Which function [`BinarySpec`] applies.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BinaryKind {
    /// `a + b`; for bool, or.
    Add,
    /// `a − b`.
    Sub,
    /// `a · b`.
    Mul,
    /// `a / b`; integers truncate toward zero.
    Div,
    /// The smaller; NaN if either is.
    Min,
    /// The larger; NaN if either is.
    Max,
    /// `a^b`.
    Pow,
    /// The remainder of the truncated quotient; it has the sign of a.
    Rem,
    /// Bitwise and.
    And,
    /// Bitwise or.
    Or,
    /// Bitwise exclusive or.
    Xor,
}

impl BinaryKind {
    /// Every function.
    pub const ALL: [BinaryKind; 11] = [
        BinaryKind::Add,
        BinaryKind::Sub,
        BinaryKind::Mul,
        BinaryKind::Div,
        BinaryKind::Min,
        BinaryKind::Max,
        BinaryKind::Pow,
        BinaryKind::Rem,
        BinaryKind::And,
        BinaryKind::Or,
        BinaryKind::Xor,
    ];

    /// The operator's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            BinaryKind::Add => "add",
            BinaryKind::Sub => "sub",
            BinaryKind::Mul => "mul",
            BinaryKind::Div => "div",
            BinaryKind::Min => "min",
            BinaryKind::Max => "max",
            BinaryKind::Pow => "pow",
            BinaryKind::Rem => "rem",
            BinaryKind::And => "and",
            BinaryKind::Or => "or",
            BinaryKind::Xor => "xor",
        }
    }

    /// The element types the function accepts.
    pub const fn dtypes(self) -> &'static [DType] {
        match self {
            BinaryKind::Add => &[
                DType::F32,
                DType::F16,
                DType::BF16,
                DType::F64,
                DType::I64,
                DType::I32,
                DType::U8,
                DType::Bool,
            ],
            BinaryKind::Pow => &FLOATS,
            BinaryKind::And | BinaryKind::Or | BinaryKind::Xor => {
                &[DType::I64, DType::I32, DType::U8, DType::Bool]
            }
            _ => &[DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::I32, DType::U8],
        }
    }

    /// The function on floating-point numbers, in f64.
    pub fn apply(self, a: f64, b: f64) -> f64 {
        match self {
            BinaryKind::Add => a + b,
            BinaryKind::Sub => a - b,
            BinaryKind::Mul => a * b,
            BinaryKind::Div => a / b,
            BinaryKind::Min | BinaryKind::Max if a.is_nan() || b.is_nan() => f64::NAN,
            BinaryKind::Min => a.min(b),
            BinaryKind::Max => a.max(b),
            BinaryKind::Pow => a.powf(b),
            BinaryKind::Rem => a % b,
            BinaryKind::And | BinaryKind::Or | BinaryKind::Xor => {
                self.apply_integer(DType::I64, a as i128, b as i128)
            }
        }
    }

    /// The function on integers or bool, wrapped to `dtype`; 0 where the kernel reports a data fault.
    fn apply_integer(self, dtype: DType, a: i128, b: i128) -> f64 {
        let value = match self {
            BinaryKind::Add => a + b,
            BinaryKind::Sub => a - b,
            BinaryKind::Mul => a * b,
            BinaryKind::Div => a.checked_div(b).unwrap_or(0),
            BinaryKind::Rem => a.checked_rem(b).unwrap_or(0),
            BinaryKind::Min => a.min(b),
            BinaryKind::Max => a.max(b),
            BinaryKind::And => a & b,
            BinaryKind::Or => a | b,
            BinaryKind::Xor => a ^ b,
            BinaryKind::Pow => 0,
        };
        wrapped(dtype, value)
    }
}

/// The second operand: a tensor, or one number for all elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rhs {
    /// A tensor.
    Tensor(TensorSpec),
    /// A number, already rounded to the type computed in.
    Scalar(f64),
}

impl Rhs {
    /// A number as second operand for elements of `dtype`: rounded to the type computed in, exact for integers.
    pub(crate) fn scalar(op: &'static str, dtype: DType, value: f64) -> Result<Self> {
        if dtype.is_float() {
            return Ok(Rhs::Scalar(rounded(compute_type(dtype), value)));
        }
        if !holds_integer(dtype, value) {
            let what = format!("{value} is not a value of {dtype}; use one, or cast the operand first");
            return Err(OpError::attribute(op, "value", what));
        }
        Ok(Rhs::Scalar(value))
    }

    /// The tensor, unless it is a number.
    pub fn tensor(&self) -> Option<&TensorSpec> {
        match self {
            Rhs::Tensor(spec) => Some(spec),
            Rhs::Scalar(_) => None,
        }
    }

    /// Values for every element of `shape`; `inputs` are the operands that are read, the second being b.
    pub(crate) fn values(&self, inputs: &[&[f64]], shape: &Shape) -> Vec<f64> {
        match self {
            Rhs::Tensor(spec) => stretched(inputs[1], spec.shape(), shape),
            Rhs::Scalar(value) => vec![*value; shape.numel()],
        }
    }
}

/// Combines two operands element by element.
///
/// `out[i] = f(a[i], b[i])`, or `f(a[i], value)`
///
/// # Shapes
/// a and b broadcast to out: trailing dimensions aligned, extents of 1 repeated. Any extent may be zero.
///
/// # DTypes
/// All of one type. Arithmetic on f32, f16, bf16, f64 (computed in f32, f64 for f64, rounded once) and on i64,
/// i32, u8, wrapping; pow on floats only; and, or, xor on i64, i32, u8, bool; add on bool is or. A number is
/// rounded to the type computed in; for integers it must be a value of the type.
///
/// # Layout
/// Any strides. out may be the very view a, or the very view b.
///
/// # Determinism
/// Every level: an element depends on nothing else.
///
/// # Cost
/// One operation per element of out.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself), `Attribute` (number not of the type, integer division by
/// 0). An integer divided by a 0 read from b is a data fault.
#[derive(Clone, Debug, PartialEq)]
pub struct BinarySpec {
    kind: BinaryKind,
    a: TensorSpec,
    b: Rhs,
    out: TensorSpec,
}

impl BinarySpec {
    /// The function of two tensors.
    pub fn new(kind: BinaryKind, a: &TensorSpec, b: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        let want = Self::out_spec(kind, a, b)?;
        Self { kind, a: *a, b: Rhs::Tensor(*b), out: *out }.checked(want)
    }

    /// The function of a tensor and a number.
    pub fn scalar(kind: BinaryKind, a: &TensorSpec, value: f64, out: &TensorSpec) -> Result<Self> {
        expect_dtype(kind.name(), "a", a, kind.dtypes())?;
        let b = Rhs::scalar(kind.name(), a.dtype(), value)?;
        if !a.dtype().is_float() && value == 0.0 && matches!(kind, BinaryKind::Div | BinaryKind::Rem) {
            return Err(OpError::attribute(kind.name(), "value", "is 0, integers do not divide by it"));
        }
        Self { kind, a: *a, b, out: *out }.checked(a.to_contiguous())
    }

    /// The result for two tensors: contiguous, of their joint shape and type.
    pub fn out_spec(kind: BinaryKind, a: &TensorSpec, b: &TensorSpec) -> Result<TensorSpec> {
        expect_dtype(kind.name(), "a", a, kind.dtypes())?;
        expect_dtype(kind.name(), "b", b, &[a.dtype()])?;
        Ok(TensorSpec::new(a.dtype(), joint_shape(kind.name(), ("a", a), ("b", b))?))
    }

    fn checked(self, want: TensorSpec) -> Result<Self> {
        expect_dims(self.kind.name(), "out", &self.out, want.dims())?;
        expect_dtype(self.kind.name(), "out", &self.out, &[want.dtype()])?;
        expect_writable(self.kind.name(), "out", &self.out)?;
        Ok(self)
    }

    /// Which function.
    pub fn kind(&self) -> BinaryKind {
        self.kind
    }
    /// First operand.
    pub fn a(&self) -> &TensorSpec {
        &self.a
    }
    /// Second operand.
    pub fn b(&self) -> &Rhs {
        &self.b
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for BinarySpec {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "a", spec: &self.a, access: Access::Read });
        if let Rhs::Tensor(spec) = &self.b {
            visit(Operand { name: "b", spec, access: Access::Read });
        }
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "a"), ("out", "b")]
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, self.out.numel() as u64)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (dtype, shape) = (self.out.dtype(), self.out.shape());
        let a = stretched(inputs[0], self.a.shape(), shape);
        let b = self.b.values(inputs, shape);
        let f = |(a, b): (f64, f64)| match dtype.is_float() {
            true => self.kind.apply(a, b),
            false => self.kind.apply_integer(dtype, a as i128, b as i128),
        };
        vec![a.into_iter().zip(b).map(f).collect()]
    }

    /// The basic operations are correctly rounded; minimum and maximum of two tensors, and the remainder of two
    /// of one type, are exact. A power is exp(b · ln a): its relative error is that of the exponent times its
    /// size, which is below 4 in our cases, so 16 units in the last place.
    fn tolerance(&self) -> Vec<Tolerance> {
        let dtype = self.out.dtype();
        let exact = matches!(self.kind, BinaryKind::Min | BinaryKind::Max | BinaryKind::Rem);
        vec![match self.kind {
            BinaryKind::Pow => ulps(dtype, 16.0),
            _ if exact && self.b.tensor().is_some() => Tolerance::EXACT,
            _ => ulps(dtype, 0.5),
        }]
    }
}

impl Cases for BinarySpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for kind in BinaryKind::ALL {
            // Divisors away from 0, quotients and powers within f16.
            let fills = |case: Case<Self>, dtype: DType| match kind {
                BinaryKind::Pow => case.fill("a", Fill::Range(0.1, 4.0)).fill("b", Fill::Range(-2.0, 2.0)),
                BinaryKind::Div | BinaryKind::Rem if dtype.is_float() => {
                    case.fill("b", Fill::Range(0.5, 2.0))
                }
                BinaryKind::Div | BinaryKind::Rem => {
                    case.fill("a", Fill::Range(0.0, 120.0)).fill("b", Fill::Range(1.0, 9.0))
                }
                _ if dtype.is_int() => case.fill("a", Fill::Range(0.0, 256.0)),
                _ => case,
            };
            for &dtype in kind.dtypes() {
                let name = |edge: &str| format!("{}/{dtype}/{edge}", kind.name());
                for edge in edges(dtype, dtype)? {
                    let b = TensorSpec::new(dtype, *edge.x.shape());
                    let case = Case::new(name(edge.name), Self::new(kind, &edge.x, &b, &edge.out)?);
                    cases.push(fills(case, dtype));
                }
                let broadcasts: [(&str, &[usize], &[usize]); 5] = [
                    ("broadcast_row", &[5, 33], &[33]),
                    ("broadcast_column", &[5, 33], &[5, 1]),
                    ("broadcast_left", &[1, 7], &[6, 7]),
                    ("broadcast_both", &[4, 1, 9], &[3, 1]),
                    ("broadcast_scalar", &[3, 40], &[]),
                ];
                for (edge, a, b) in broadcasts {
                    let (a, b) = (TensorSpec::of(dtype, a)?, TensorSpec::of(dtype, b)?);
                    let spec = Self::new(kind, &a, &b, &Self::out_spec(kind, &a, &b)?)?;
                    cases.push(fills(Case::new(name(edge), spec), dtype));
                }
                let x = TensorSpec::of(dtype, &[4, 37])?;
                let value = if dtype.is_float() { 0.7 } else { 1.0 };
                cases.push(fills(Case::new(name("number"), Self::scalar(kind, &x, value, &x)?), dtype));
                if dtype.is_float() && kind != BinaryKind::Pow {
                    let x = TensorSpec::of(dtype, &[35])?;
                    let case = Case::new(name("special"), Self::new(kind, &x, &x, &x)?)
                        .fill("a", Fill::Values(vec![f64::NAN, 1.0, -2.0, f64::INFINITY, 0.0]))
                        .fill(
                            "b",
                            Fill::Values(vec![1.0, f64::NAN, 0.0, -0.5, f64::NEG_INFINITY, 4.0, -0.0]),
                        );
                    cases.push(case);
                }
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dtype: DType, dims: &[usize]) -> TensorSpec {
        TensorSpec::of(dtype, dims).unwrap()
    }

    fn run(kind: BinaryKind, dtype: DType, a: f64, b: f64) -> f64 {
        let s = spec(dtype, &[1]);
        BinarySpec::new(kind, &s, &s, &s).unwrap().reference(&[&[a], &[b]])[0][0]
    }

    #[test]
    fn functions_meet_values_known_by_hand() {
        use BinaryKind::*;
        for (kind, dtype, a, b, y) in [
            (Add, DType::F32, 1.5, 2.0, 3.5),
            (Add, DType::U8, 250.0, 10.0, 4.0),
            (Add, DType::Bool, 1.0, 1.0, 1.0),
            (Sub, DType::U8, 1.0, 2.0, 255.0),
            (Mul, DType::I32, 65536.0, 65536.0, 0.0),
            (Div, DType::I32, -7.0, 2.0, -3.0),
            (Div, DType::I32, f64::from(i32::MIN), -1.0, f64::from(i32::MIN)),
            (Rem, DType::I32, -7.0, 2.0, -1.0),
            (Rem, DType::F32, -7.5, 2.0, -1.5),
            (Pow, DType::F32, 2.0, -2.0, 0.25),
            (Xor, DType::I32, -1.0, 1.0, -2.0),
            (And, DType::U8, 12.0, 10.0, 8.0),
            (Max, DType::I64, -3.0, 2.0, 2.0),
        ] {
            assert_eq!(run(kind, dtype, a, b), y, "{} {dtype} {a} {b}", kind.name());
        }
        assert!(run(Min, DType::F32, f64::NAN, 1.0).is_nan() && run(Max, DType::F32, 1.0, f64::NAN).is_nan());
    }

    #[test]
    fn operands_broadcast_both_ways() {
        let (a, b) = (spec(DType::F32, &[2, 1]), spec(DType::F32, &[3]));
        let out = BinarySpec::out_spec(BinaryKind::Add, &a, &b).unwrap();
        let add = BinarySpec::new(BinaryKind::Add, &a, &b, &out).unwrap();
        let sums = add.reference(&[&[10.0, 20.0], &[1.0, 2.0, 3.0]]);
        assert_eq!(sums, [vec![11.0, 12.0, 13.0, 21.0, 22.0, 23.0]]);
    }

    #[test]
    fn numbers_are_rounded_for_floats_and_exact_for_integers() {
        let f = spec(DType::F16, &[2]);
        let half = BinarySpec::scalar(BinaryKind::Mul, &f, 0.1, &f).unwrap();
        assert_eq!(*half.b(), Rhs::Scalar(f64::from(0.1f32)));
        let i = spec(DType::I32, &[2]);
        assert!(BinarySpec::scalar(BinaryKind::Mul, &i, 0.5, &i).is_err());
        let e = BinarySpec::scalar(BinaryKind::Div, &i, 0.0, &i).unwrap_err();
        assert_eq!(e.to_string(), "div: value is 0, integers do not divide by it");
    }

    #[test]
    fn shapes_that_do_not_broadcast_are_named() {
        let e = BinarySpec::out_spec(BinaryKind::Add, &spec(DType::F32, &[2, 3]), &spec(DType::F32, &[2]));
        assert_eq!(e.unwrap_err().to_string(), "add: a is [2, 3], b is [2]: they do not broadcast");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(BinarySpec::cases().unwrap().len() > 900);
    }
}
