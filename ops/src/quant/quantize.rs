//! Quantize: numbers to codes by scales that are given.
//!
//! The rule by which a number becomes a code is [`QuantScheme::code_of`]; `dynamic_quantize.rs` finds the scales too.

use super::linear::case_schemes;
use super::weight::QuantSpec;
use super::{Offset, QuantScheme, ScaleKind};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};

const OP: &str = "quantize";

/// Rounds numbers to codes by given scales.
///
/// `codes[n, k] = code(x[n, k])`, by the f32 rule of [`QuantScheme::code_of`] and the scale and offset of the block
///
/// # Shapes
/// x and codes `[n, k]`; scale and offset one entry a block, as in [`QuantSpec`]. Any extent may be zero.
///
/// # DTypes
/// x f32, f16 or bf16; codes, scale and offset as the scheme says, without two levels.
///
/// # Layout
/// Any strides for x; rows of the others are contiguous.
///
/// # Determinism
/// The same codes at every level and on every device.
///
/// # Cost
/// Two operations per element, three with an offset; reads x, scale and offset, writes the codes.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (codes overlap themselves), `Attribute` (a scheme of two levels, whose scales are
/// themselves rounded).
///
/// # Composition
/// In f32 scratch: subtract the minimum, divide by the scale, round, add the zero point, clamp, cast.
///
/// # Source
/// OCP Microscaling formats 1.0, 6.3; the affine rule of ONNX QuantizeLinear.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizeSpec {
    x: TensorSpec,
    quant: QuantSpec,
}

impl QuantizeSpec {
    /// Quantizes `x` into the codes of `quant`, by its scale and offset.
    pub fn new(x: &TensorSpec, quant: &QuantSpec) -> Result<Self> {
        expect_dims(OP, "x", x, &[quant.n(), quant.k()])?;
        expect_dtype(OP, "x", x, &[DType::F32, DType::F16, DType::BF16])?;
        expect_writable(OP, "codes", quant.codes())?;
        if quant.scheme().scale.outer().is_some() {
            let what = format!("is {:?}, expected one of a single level", quant.scheme().scale);
            return Err(OpError::attribute(OP, "scale", what));
        }
        Ok(Self { x: *x, quant: quant.clone() })
    }

    /// Numbers.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Codes, scale and offset.
    pub fn quant(&self) -> &QuantSpec {
        &self.quant
    }
}

impl Contract for QuantizeSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "scale", spec: self.quant.scale(), access: Access::Read });
        if let Some(spec) = self.quant.offset() {
            visit(Operand { name: "offset", spec, access: Access::Read });
        }
        visit(Operand { name: "codes", spec: self.quant.codes(), access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let each = 2 + u64::from(self.quant.scheme().offset != Offset::None);
        streaming_cost(self, (self.x.numel() as u64).saturating_mul(each))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (n, k, scheme) = (self.quant.n(), self.quant.k(), self.quant.scheme());
        let columns = k.div_ceil(scheme.block[1]);
        let mut codes = Vec::with_capacity(n * k);
        for row in 0..n {
            for column in 0..k {
                let at = row / scheme.block[0] * columns + column / scheme.block[1];
                let offset = inputs.get(2).map_or(0.0, |offsets| offsets[at] as f32);
                let code = scheme.code_of(inputs[0][row * k + column] as f32, inputs[1][at] as f32, offset);
                codes.push(f64::from(code));
            }
        }
        vec![codes]
    }

    /// The rule fixes every rounding.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT]
    }
}

impl Cases for QuantizeSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let mut cases = Vec::new();
        let filled = |name: String, spec: Self| {
            let case = Case::new(name, spec.clone()).fill("x", Fill::Range(-3.0, 3.0));
            spec.quant.fills().into_iter().fold(case, |case, (part, fill)| match part {
                "weight.scale" => case.fill("scale", fill),
                "weight.offset" => case.fill("offset", fill),
                _ => case,
            })
        };
        for (edge, n, k) in [
            ("empty_n", 0, 32),
            ("empty_k", 3, 0),
            ("one", 1, 1),
            ("ragged", 5, 83),
            ("tall", 131, 40),
            ("typical", 9, 576),
            ("long", 2, 1600),
        ] {
            for (i, (name, scheme)) in case_schemes(k)?.into_iter().enumerate() {
                if scheme.scale.outer().is_some() {
                    continue;
                }
                let dtype = [DType::F32, DType::F16, DType::BF16][i % 3];
                let quant = QuantSpec::of(scheme, n, k)?;
                let spec = Self::new(&TensorSpec::of(dtype, &[n, k])?, &quant)?;
                cases.push(filled(format!("quantize/{name}_{dtype}/{edge}"), spec));
            }
        }
        let odd = QuantScheme::new(DType::F4E2M1, [1, 5], ScaleKind::F32, Offset::None)?;
        let special = [0.0, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e30, -1e-30, 2.5, 1.0];
        for (name, scheme) in
            [("int8_row", QuantScheme::INT8_ROW), ("f8", QuantScheme::F8_GROUP), ("f4", odd)]
        {
            let quant = QuantSpec::of(scheme, 5, 43)?;
            let x = TensorSpec::of(DType::F32, &[5, 43])?;
            let case = Case::new(format!("quantize/{name}/no_numbers"), Self::new(&x, &quant)?);
            let scales = [1.0, 0.0, f64::NAN, f64::INFINITY, -0.25];
            cases.push(
                case.fill("x", Fill::Values(special.to_vec())).fill("scale", Fill::Values(scales.to_vec())),
            );
            let x =
                TensorSpec::of(DType::F32, &[44, 7])?.transpose(0, 1)?.narrow(0, 1, 5)?.narrow(1, 0, 43)?;
            cases.push(filled(format!("quantize/{name}/strided"), Self::new(&x, &quant)?));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_by_hand() {
        let scheme = QuantScheme::new(DType::U4, [1, 2], ScaleKind::F32, Offset::Min).unwrap();
        let quant = QuantSpec::of(scheme, 1, 4).unwrap();
        let spec = QuantizeSpec::new(&TensorSpec::of(DType::F32, &[1, 4]).unwrap(), &quant).unwrap();
        let got = spec.reference(&[&[1.0, 2.2, -9.0, 99.0], &[0.5, 2.0], &[1.0, -1.0]]);
        assert_eq!(got, [[0.0, 2.0, 0.0, 15.0]]);
        assert_eq!(spec.cost().flops, 12);
        assert_eq!((spec.cost().bytes_read, spec.cost().bytes_written), (16 + 8 + 8, 2));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let quant = |scheme| QuantSpec::of(scheme, 2, 256).unwrap();
        let new = |dtype, dims: &[usize], scheme| {
            QuantizeSpec::new(&TensorSpec::of(dtype, dims).unwrap(), &quant(scheme))
        };
        assert!(new(DType::F32, &[2, 256], QuantScheme::Q4_1).is_ok());
        assert!(new(DType::F64, &[2, 256], QuantScheme::Q4_1).is_err());
        assert!(new(DType::F32, &[256, 2], QuantScheme::Q4_1).is_err());
        let e = new(DType::F32, &[2, 256], QuantScheme::Q4_K).unwrap_err();
        assert!(matches!(e, OpError::Attribute { .. }), "{e}");
    }

    #[test]
    fn every_case_is_legal() {
        assert!(QuantizeSpec::cases().unwrap().len() > 120);
    }
}
