//! Functions of one element: arithmetic, roots, exponentials, rounding, activations, predicates.

use super::edges::{FLOATS, edges};
use super::rounding::{compute_type, ulps, wrapped};
use super::{Activation, gemm};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_writable, streaming_cost,
};

/// Which function [`UnarySpec`] applies.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UnaryKind {
    /// `−x`; integers wrap.
    Neg,
    /// `|x|`; integers wrap.
    Abs,
    /// `x²`; integers wrap.
    Square,
    /// `1 / x`.
    Recip,
    /// `√x`.
    Sqrt,
    /// `1 / √x`.
    Rsqrt,
    /// `e^x`.
    Exp,
    /// `ln x`.
    Log,
    /// `sin x`.
    Sin,
    /// `cos x`.
    Cos,
    /// `tanh x`.
    Tanh,
    /// `erf x`.
    Erf,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// `max(x, 0)`; NaN stays.
    Relu,
    /// `x / (1 + e^−x)`.
    Silu,
    /// `x / 2 · (1 + erf(x / √2))`.
    Gelu,
    /// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// The largest integer not above x.
    Floor,
    /// The smallest integer not below x.
    Ceil,
    /// The nearest integer, ties to even.
    Round,
    /// `!x`, for bool.
    Not,
    /// Whether x is NaN; gives bool.
    IsNan,
    /// Whether x is neither NaN nor infinite; gives bool.
    IsFinite,
}

impl UnaryKind {
    /// Every function.
    pub const ALL: [UnaryKind; 23] = [
        UnaryKind::Neg,
        UnaryKind::Abs,
        UnaryKind::Square,
        UnaryKind::Recip,
        UnaryKind::Sqrt,
        UnaryKind::Rsqrt,
        UnaryKind::Exp,
        UnaryKind::Log,
        UnaryKind::Sin,
        UnaryKind::Cos,
        UnaryKind::Tanh,
        UnaryKind::Erf,
        UnaryKind::Sigmoid,
        UnaryKind::Relu,
        UnaryKind::Silu,
        UnaryKind::Gelu,
        UnaryKind::GeluTanh,
        UnaryKind::Floor,
        UnaryKind::Ceil,
        UnaryKind::Round,
        UnaryKind::Not,
        UnaryKind::IsNan,
        UnaryKind::IsFinite,
    ];

    /// The operator's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            UnaryKind::Neg => "neg",
            UnaryKind::Abs => "abs",
            UnaryKind::Square => "square",
            UnaryKind::Recip => "recip",
            UnaryKind::Sqrt => "sqrt",
            UnaryKind::Rsqrt => "rsqrt",
            UnaryKind::Exp => "exp",
            UnaryKind::Log => "log",
            UnaryKind::Sin => "sin",
            UnaryKind::Cos => "cos",
            UnaryKind::Tanh => "tanh",
            UnaryKind::Erf => "erf",
            UnaryKind::Sigmoid => "sigmoid",
            UnaryKind::Relu => "relu",
            UnaryKind::Silu => "silu",
            UnaryKind::Gelu => "gelu",
            UnaryKind::GeluTanh => "gelu_tanh",
            UnaryKind::Floor => "floor",
            UnaryKind::Ceil => "ceil",
            UnaryKind::Round => "round",
            UnaryKind::Not => "not",
            UnaryKind::IsNan => "is_nan",
            UnaryKind::IsFinite => "is_finite",
        }
    }

    /// The element types the function accepts.
    pub const fn dtypes(self) -> &'static [DType] {
        match self {
            UnaryKind::Not => &[DType::Bool],
            UnaryKind::Neg | UnaryKind::Abs | UnaryKind::Square => {
                &[DType::F32, DType::F16, DType::BF16, DType::F64, DType::I32, DType::I64]
            }
            _ => &FLOATS,
        }
    }

    /// The function in f64.
    pub fn apply(self, x: f64) -> f64 {
        match self {
            UnaryKind::Neg => -x,
            UnaryKind::Abs => x.abs(),
            UnaryKind::Square => x * x,
            UnaryKind::Recip => 1.0 / x,
            UnaryKind::Sqrt => x.sqrt(),
            UnaryKind::Rsqrt => 1.0 / x.sqrt(),
            UnaryKind::Exp => x.exp(),
            UnaryKind::Log => x.ln(),
            UnaryKind::Sin => x.sin(),
            UnaryKind::Cos => x.cos(),
            UnaryKind::Tanh => x.tanh(),
            UnaryKind::Erf => gemm::erf(x),
            UnaryKind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            UnaryKind::Relu => Activation::Relu.apply(x),
            UnaryKind::Silu => Activation::Silu.apply(x),
            UnaryKind::Gelu => Activation::Gelu.apply(x),
            UnaryKind::GeluTanh => Activation::GeluTanh.apply(x),
            UnaryKind::Floor => x.floor(),
            UnaryKind::Ceil => x.ceil(),
            UnaryKind::Round => x.round_ties_even(),
            UnaryKind::Not => f64::from(u8::from(x == 0.0)),
            UnaryKind::IsNan => f64::from(u8::from(x.is_nan())),
            UnaryKind::IsFinite => f64::from(u8::from(x.is_finite())),
        }
    }
}

/// Applies a function to every element.
///
/// `out[i] = f(x[i])`
///
/// # Shapes
/// x and out alike; any extent may be zero.
///
/// # DTypes
/// f32, f16, bf16, f64, computed in f32 (f64 for f64) and rounded once. neg, abs and square also i32 and i64,
/// wrapping; not: bool. out has x's type; is_nan and is_finite give bool.
///
/// # Layout
/// Any strides. out may be the very view x where the types agree.
///
/// # Determinism
/// Every level: an element depends on nothing else.
///
/// # Cost
/// One operation per element.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself).
///
/// silu and both gelu of −∞ are NaN or −0, as the formula is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct UnarySpec {
    kind: UnaryKind,
    x: TensorSpec,
    out: TensorSpec,
}

impl UnarySpec {
    /// The function `kind` from x to out.
    pub fn new(kind: UnaryKind, x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        let want = Self::out_spec(kind, x)?;
        expect_dims(kind.name(), "out", out, want.dims())?;
        expect_dtype(kind.name(), "out", out, &[want.dtype()])?;
        expect_writable(kind.name(), "out", out)?;
        Ok(Self { kind, x: *x, out: *out })
    }

    /// The result for x: contiguous, of x's type, or bool for predicates.
    pub fn out_spec(kind: UnaryKind, x: &TensorSpec) -> Result<TensorSpec> {
        expect_dtype(kind.name(), "x", x, kind.dtypes())?;
        let predicate = matches!(kind, UnaryKind::IsNan | UnaryKind::IsFinite);
        Ok(TensorSpec::new(if predicate { DType::Bool } else { x.dtype() }, *x.shape()))
    }

    /// Which function.
    pub fn kind(&self) -> UnaryKind {
        self.kind
    }
    /// Argument.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for UnarySpec {
    fn name(&self) -> &'static str {
        self.kind.name()
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn in_place(&self) -> &'static [(&'static str, &'static str)] {
        &[("out", "x")]
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, self.out.numel() as u64)
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let dtype = self.x.dtype();
        let f = |&x: &f64| match dtype.is_int() {
            true => wrapped(dtype, self.kind.apply(x) as i128),
            false => self.kind.apply(x),
        };
        vec![inputs[0].iter().map(f).collect()]
    }

    /// In units in the last place of the type computed in, for arguments of ordinary size. One basic operation
    /// is correctly rounded (½); a quotient over a root, 2; a table-free exponential or logarithm, 4; functions
    /// made of one and a quotient, 8. Where the result passes through zero by cancellation (sine and cosine at
    /// multiples of π/2, log at 1, gelu for negative x) the error is absolute: of the size of the largest part.
    fn tolerance(&self) -> Vec<Tolerance> {
        let dtype = self.out.dtype();
        let u = compute_type(dtype).unit_roundoff();
        let absolute = |units: f64| Tolerance { abs: units * u, rel: 0.0 };
        vec![match self.kind {
            UnaryKind::Neg
            | UnaryKind::Abs
            | UnaryKind::Relu
            | UnaryKind::Floor
            | UnaryKind::Ceil
            | UnaryKind::Round
            | UnaryKind::Not
            | UnaryKind::IsNan
            | UnaryKind::IsFinite => Tolerance::EXACT,
            UnaryKind::Square | UnaryKind::Recip | UnaryKind::Sqrt => ulps(dtype, 0.5),
            UnaryKind::Rsqrt => ulps(dtype, 2.0),
            UnaryKind::Exp => ulps(dtype, 4.0),
            UnaryKind::Log => ulps(dtype, 4.0).plus(absolute(1.0)),
            UnaryKind::Sin | UnaryKind::Cos => ulps(dtype, 4.0).plus(absolute(4.0)),
            UnaryKind::Tanh | UnaryKind::Erf => ulps(dtype, 8.0).plus(absolute(1.0)),
            UnaryKind::Sigmoid | UnaryKind::Silu => ulps(dtype, 8.0),
            // x/2 · (1 + t) with t near −1: |x| ≤ 8 times the error of t.
            UnaryKind::Gelu | UnaryKind::GeluTanh => ulps(dtype, 8.0).plus(absolute(16.0)),
        }]
    }
}

/// Where the function is interesting and its result fits f16.
fn domain(kind: UnaryKind) -> Fill {
    match kind {
        UnaryKind::Recip | UnaryKind::Sqrt | UnaryKind::Rsqrt | UnaryKind::Log => Fill::Range(0.01, 10.0),
        UnaryKind::Sin | UnaryKind::Cos => Fill::Range(-40.0, 40.0),
        _ => Fill::Range(-8.0, 8.0),
    }
}

impl Cases for UnarySpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for kind in UnaryKind::ALL {
            for &dtype in kind.dtypes() {
                let out = Self::out_spec(kind, &TensorSpec::of(dtype, &[])?)?.dtype();
                for edge in edges(dtype, out)? {
                    let spec = Self::new(kind, &edge.x, &edge.out)?;
                    let name = format!("{}/{dtype}/{}", kind.name(), edge.name);
                    cases.push(Case::new(name, spec).fill("x", domain(kind)));
                }
                if dtype.is_float() {
                    let mut special =
                        vec![0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, f64::INFINITY, f64::NAN];
                    if !matches!(kind, UnaryKind::Silu | UnaryKind::Gelu | UnaryKind::GeluTanh) {
                        special.push(f64::NEG_INFINITY);
                    }
                    let x = TensorSpec::of(dtype, &[33])?;
                    let spec = Self::new(kind, &x, &TensorSpec::of(out, &[33])?)?;
                    cases.push(
                        Case::new(format!("{}/{dtype}/special", kind.name()), spec)
                            .fill("x", Fill::Values(special)),
                    );
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

    fn reference(kind: UnaryKind, dtype: DType, x: &[f64]) -> Vec<f64> {
        let x_spec = spec(dtype, &[x.len()]);
        let out = UnarySpec::out_spec(kind, &x_spec).unwrap();
        UnarySpec::new(kind, &x_spec, &out).unwrap().reference(&[x]).remove(0)
    }

    #[test]
    fn functions_meet_values_known_by_hand() {
        use UnaryKind::*;
        for (kind, x, y) in [
            (Round, 2.5, 2.0),
            (Round, -1.5, -2.0),
            (Floor, -0.5, -1.0),
            (Ceil, -0.5, 0.0),
            (Rsqrt, 4.0, 0.5),
            (Recip, -8.0, -0.125),
            (Sigmoid, 0.0, 0.5),
            (Silu, 0.0, 0.0),
            (Square, -3.0, 9.0),
            (Exp, 0.0, 1.0),
            (Tanh, f64::INFINITY, 1.0),
            (IsFinite, f64::INFINITY, 0.0),
            (IsNan, f64::NAN, 1.0),
            (Relu, -3.0, 0.0),
        ] {
            assert_eq!(reference(kind, DType::F32, &[x]), [y], "{} {x}", kind.name());
        }
        assert!(reference(Relu, DType::F32, &[f64::NAN])[0].is_nan());
    }

    #[test]
    fn integer_functions_wrap() {
        let lowest = f64::from(i32::MIN);
        assert_eq!(reference(UnaryKind::Neg, DType::I32, &[lowest, 5.0]), [lowest, -5.0]);
        assert_eq!(reference(UnaryKind::Square, DType::I32, &[65536.0]), [0.0]);
    }

    #[test]
    fn types_without_a_meaning_are_refused() {
        assert!(UnarySpec::out_spec(UnaryKind::Exp, &spec(DType::I32, &[2])).is_err());
        assert!(UnarySpec::out_spec(UnaryKind::Not, &spec(DType::F32, &[2])).is_err());
        let e = UnarySpec::new(UnaryKind::IsNan, &spec(DType::F32, &[2]), &spec(DType::F32, &[2]));
        assert_eq!(e.unwrap_err().to_string(), "is_nan: out is f32, expected bool");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(UnarySpec::cases().unwrap().len() > 900);
    }
}
