//! One number into every element.

use super::edges::MOVABLE;
use super::rounding::holds_integer;
use crate::{
    Access, Case, Cases, Contract, Cost, OpError, Operand, Result, TensorSpec, Tolerance, expect_dtype,
    expect_writable, rounded, streaming_cost,
};

const OP: &str = "fill";

/// Writes one number into every element.
///
/// `out[i] = value`
///
/// # Shapes
/// Any; any extent may be zero.
///
/// # DTypes
/// f64, f32, f16, bf16, i64, i32, i8, u8, bool. For floats the number is rounded to the nearest of the type and
/// must not overflow; for integers and bool it must be a value of the type.
///
/// # Layout
/// Any strides.
///
/// # Determinism
/// Every level.
///
/// # Cost
/// No arithmetic.
///
/// # Errors
/// `DType`, `Layout` (out overlaps itself), `Attribute` (number not of the type).
#[derive(Clone, Debug, PartialEq)]
pub struct FillSpec {
    out: TensorSpec,
    value: f64,
}

impl FillSpec {
    /// `value` into every element of out.
    pub fn new(out: &TensorSpec, value: f64) -> Result<Self> {
        expect_dtype(OP, "out", out, &MOVABLE)?;
        expect_writable(OP, "out", out)?;
        let dtype = out.dtype();
        let nearest = rounded(dtype, value);
        let legal = match dtype.is_float() {
            true => nearest.is_finite() || !value.is_finite(),
            false => holds_integer(dtype, value),
        };
        if !legal {
            let what = format!("{value} is not a value of {dtype}; use one, or another element type");
            return Err(OpError::attribute(OP, "value", what));
        }
        Ok(Self { out: *out, value: nearest })
    }

    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
    /// The number, already rounded to the element type.
    pub fn value(&self) -> f64 {
        self.value
    }
}

impl Contract for FillSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        streaming_cost(self, 0)
    }

    fn reference(&self, _inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        vec![vec![self.value; self.out.numel()]]
    }

    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

impl Cases for FillSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for dtype in MOVABLE {
            for edge in super::edges::edges(dtype, dtype)? {
                cases.push(Case::new(format!("fill/{dtype}/{}", edge.name), Self::new(&edge.out, 1.0)?));
            }
            let out = TensorSpec::of(dtype, &[37])?;
            cases.push(Case::new(format!("fill/{dtype}/zero"), Self::new(&out, 0.0)?));
            if dtype.is_float() {
                for (name, value) in [("tenth", 0.1), ("nan", f64::NAN), ("infinite", f64::NEG_INFINITY)] {
                    cases.push(Case::new(format!("fill/{dtype}/{name}"), Self::new(&out, value)?));
                }
            }
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn numbers_outside_the_type_are_refused() {
        let spec = |d| TensorSpec::of(d, &[2]).unwrap();
        let e = FillSpec::new(&spec(DType::F16), 1e6).unwrap_err();
        assert_eq!(
            e.to_string(),
            "fill: value 1000000 is not a value of f16; use one, or another element type"
        );
        assert!(FillSpec::new(&spec(DType::U8), 256.0).is_err());
        assert!(FillSpec::new(&spec(DType::I32), 0.5).is_err());
        assert!(FillSpec::new(&spec(DType::Bool), 2.0).is_err());
        assert_eq!(FillSpec::new(&spec(DType::F32), 0.1).unwrap().value(), f64::from(0.1f32));
        assert!(FillSpec::new(&spec(DType::F16), f64::INFINITY).is_ok());
    }

    #[test]
    fn every_case_is_legal() {
        assert!(FillSpec::cases().unwrap().len() > 100);
    }
}
