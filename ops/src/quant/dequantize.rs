//! Dequantize: a quantized weight as a dense matrix, for compositions and for looking at it.
//!
//! The rule by which codes become numbers is in `scheme.rs`.

use super::linear::case_schemes;
use super::weight::{QuantSpec, WeightSpec};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Operand, Result, TensorSpec, Tolerance, expect_dims,
    expect_dtype, expect_writable, streaming_cost,
};

const OP: &str = "dequantize";

/// Turns codes into numbers.
///
/// `out[n, k] = value(codes[n, k])`, by the f32 rule of [`super::QuantScheme::value`]
///
/// # Shapes
/// weight `[n, k]`, out `[n, k]`; any extent may be zero.
///
/// # DTypes
/// out f32 (exact, by the rule), f16 or bf16 (that f32, rounded to nearest even).
///
/// # Layout
/// Any strides for out.
///
/// # Determinism
/// The same bits at every level and on every device.
///
/// # Cost
/// One operation per element, two with an offset; reads the weight, writes out.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (out overlaps itself).
///
/// # Source
/// The reference dequantization of the GGUF format.
#[derive(Clone, Debug, PartialEq)]
pub struct DequantizeSpec {
    weight: WeightSpec,
    out: TensorSpec,
}

impl DequantizeSpec {
    /// Dequantizes `weight` into `out`.
    pub fn new(weight: &QuantSpec, out: &TensorSpec) -> Result<Self> {
        expect_dims(OP, "out", out, &[weight.n(), weight.k()])?;
        expect_dtype(OP, "out", out, &[DType::F32, DType::F16, DType::BF16])?;
        expect_writable(OP, "out", out)?;
        Ok(Self { weight: weight.clone().into(), out: *out })
    }

    /// The result: contiguous, of the given type.
    pub fn out_spec(weight: &QuantSpec, dtype: DType) -> Result<TensorSpec> {
        TensorSpec::of(dtype, &[weight.n(), weight.k()])
    }

    /// The quantized weight, always [`WeightSpec::Quant`].
    pub fn weight(&self) -> &WeightSpec {
        &self.weight
    }
    /// Result.
    pub fn out(&self) -> &TensorSpec {
        &self.out
    }
}

impl Contract for DequantizeSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        self.weight.visit(Access::Read, visit);
        visit(Operand { name: "out", spec: &self.out, access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let shifted = self.weight.scheme().is_some_and(|s| s.offset != super::Offset::None);
        streaming_cost(self, (self.out.numel() as u64).saturating_mul(1 + u64::from(shifted)))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        self.weight.dequantize_f64(inputs).into_iter().collect()
    }

    /// The rule fixes every f32 rounding, so f32 is exact; narrower results round once.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![match self.out.dtype() {
            DType::F32 => Tolerance::EXACT,
            // Below the smallest normal f16, 2^−14, the spacing is 2^−24 and no longer relative.
            dtype => Tolerance::rounded_to(dtype, 0.5f64.powi(25)),
        }]
    }
}

impl Cases for DequantizeSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        for (edge, n, k) in
            [("empty_n", 0, 32), ("empty_k", 3, 0), ("one", 1, 1), ("ragged", 5, 83), ("typical", 9, 576)]
        {
            for (name, scheme) in case_schemes(k)? {
                let weight = QuantSpec::of(scheme, n, k)?;
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let spec = Self::new(&weight, &Self::out_spec(&weight, dtype)?)?;
                    let case = Case::new(format!("dequantize/{name}_{dtype}/{edge}"), spec);
                    cases.push(
                        weight.fills().into_iter().fold(case, |case, (part, fill)| case.fill(part, fill)),
                    );
                }
            }
        }
        let weight = QuantSpec::of(super::QuantScheme::Q4_K, 6, 300)?;
        let out =
            TensorSpec::of(DType::F32, &[301, 7])?.transpose(0, 1)?.narrow(0, 1, 6)?.narrow(1, 0, 300)?;
        let case = Case::new("dequantize/q4_k_f32/strided", Self::new(&weight, &out)?);
        cases.push(weight.fills().into_iter().fold(case, |case, (part, fill)| case.fill(part, fill)));
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::super::QuantScheme;
    use super::*;

    #[test]
    fn every_case_is_legal() {
        assert!(DequantizeSpec::cases().unwrap().len() > 200);
    }

    #[test]
    fn results_of_other_extents_or_types_are_refused() {
        let weight = QuantSpec::of(QuantScheme::Q4_0, 2, 32).unwrap();
        let new = |dtype, dims: &[usize]| DequantizeSpec::new(&weight, &TensorSpec::of(dtype, dims).unwrap());
        assert_eq!(new(DType::F32, &[2, 32]).unwrap().cost().flops, 64);
        assert!(new(DType::F32, &[32, 2]).is_err());
        assert!(new(DType::F64, &[2, 32]).is_err());
    }
}
