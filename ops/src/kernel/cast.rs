//! Conversion between element types.

use super::edges::{MOVABLE, edges};
use super::rounding::wrapped;
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_writable, rounded, streaming_cost,
};

const OP: &str = "cast";

/// Converts a tensor to another element type.
///
/// `out[i] = convert(x[i])`
///
/// # Shapes
/// x and out alike; any extent may be zero.
///
/// # DTypes
/// Between any two of f64, f32, f16, bf16, i64, i32, i8, u8, bool. To a float: the nearest, ties to even, one
/// rounding. Float to integer: truncates, saturates, NaN gives 0. Integer to integer: keeps the low bits. To
/// bool: `x ≠ 0`, so NaN is true. From bool: 0 or 1. (What Rust's `as` does.)
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// Every level.
///
/// # Cost
/// One operation per element.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself).
#[derive(Clone, Debug, PartialEq)]
pub struct CastSpec {
    x: TensorSpec,
    out: TensorSpec,
}

impl CastSpec {
    /// The conversion of x to out's element type.
    pub fn new(x: &TensorSpec, out: &TensorSpec) -> Result<Self> {
        expect_dtype(OP, "x", x, &MOVABLE)?;
        expect_dtype(OP, "out", out, &MOVABLE)?;
        expect_dims(OP, "out", out, x.dims())?;
        expect_writable(OP, "out", out)?;
        Ok(Self { x: *x, out: *out })
    }

    /// Source.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for CastSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, self.out.numel() as u64)
    }

    /// Rounded to out's type: a conversion is exact.
    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (from, to) = (self.x.dtype(), self.out.dtype());
        let convert = |&x: &f64| match from.is_int() && to.is_int() {
            true => wrapped(to, x as i128),
            false => rounded(to, x),
        };
        vec![inputs[0].iter().map(convert).collect()]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

impl Cases for CastSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for from in MOVABLE {
            for to in MOVABLE {
                let name = |edge: &str| format!("cast/{from}_{to}/{edge}");
                let wide = if from == DType::Bool { Fill::Unit } else { Fill::Range(-300.0, 300.0) };
                for edge in edges(from, to)? {
                    let case = Case::new(name(edge.name), Self::new(&edge.x, &edge.out)?);
                    cases.push(case.fill("x", wide.clone()));
                }
                let special = match from {
                    DType::F64 | DType::F32 | DType::F16 | DType::BF16 => vec![
                        0.0,
                        -0.0,
                        0.4,
                        -0.6,
                        f64::NAN,
                        f64::INFINITY,
                        f64::NEG_INFINITY,
                        1.0 + 2f64.powi(-11) + 2f64.powi(-40),
                        65519.9,
                        65520.0,
                        -1e300,
                        3e9,
                        -3e9,
                        1e19,
                        6e-8,
                        2.98e-8,
                        1e-40,
                        255.7,
                        -129.0,
                    ],
                    DType::I64 => {
                        vec![0.0, 255.0, 256.0, -129.0, 2147483648.0, -2147483649.0, 9007199254740992.0]
                    }
                    DType::I32 => {
                        vec![0.0, 16777217.0, -16777219.0, 2147483647.0, -2147483648.0, 65536.0, 257.0]
                    }
                    _ => vec![0.0, 1.0, 127.0, 128.0, 255.0, -1.0, -128.0],
                };
                let (x, out) = (TensorSpec::of(from, &[41])?, TensorSpec::of(to, &[41])?);
                cases.push(Case::new(name("special"), Self::new(&x, &out)?).fill("x", Fill::Values(special)));
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cast(from: DType, to: DType, x: f64) -> f64 {
        let spec = |d| TensorSpec::of(d, &[1]).unwrap();
        CastSpec::new(&spec(from), &spec(to)).unwrap().reference(&[&[x]])[0][0]
    }

    #[test]
    fn conversions_meet_values_known_by_hand() {
        use DType::*;
        for (from, to, x, y) in [
            (F32, I32, -1.9, -1.0),
            (F32, I8, 300.0, 127.0),
            (F32, U8, -5.0, 0.0),
            (F32, I32, f64::NAN, 0.0),
            (F32, Bool, f64::NAN, 1.0),
            (F32, Bool, -0.0, 0.0),
            (I32, I8, 200.0, -56.0),
            (I32, U8, -1.0, 255.0),
            (I32, F32, 16777217.0, 16777216.0),
            (F64, F16, 65520.0, f64::INFINITY),
            (F32, BF16, 1.00390625, 1.0),
            (Bool, I64, 1.0, 1.0),
        ] {
            assert_eq!(cast(from, to, x), y, "{from} {to} {x}");
        }
    }

    #[test]
    fn types_without_a_conversion_are_refused() {
        let (a, b) = (TensorSpec::of(DType::F32, &[2]).unwrap(), TensorSpec::of(DType::I4, &[2]).unwrap());
        assert!(CastSpec::new(&a, &b).is_err() && CastSpec::new(&b, &a).is_err());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(CastSpec::cases().unwrap().len() > 900);
    }
}
