//! Dynamic quantize: numbers to codes, the scale of every block found from its largest magnitude.
//!
//! The scale's rule is [`super::QuantScheme::block_scale`], the codes' [`super::QuantScheme::code_of`].

use super::weight::QuantSpec;
use super::{Offset, QuantScheme, ScaleKind};
use crate::{
    Access, Case, Cases, Contract, Cost, DType, Fill, OpError, Operand, Result, TensorSpec, Tolerance,
    expect_dims, expect_dtype, expect_writable, streaming_cost,
};

const OP: &str = "dynamic_quantize";

/// Finds the scale of every block and rounds numbers to codes by it.
///
/// `scale[b] = block_scale(max over b of |x|)`, `codes[n, k] = code(x[n, k])` within `±top`, by the f32 rules of
/// [`QuantScheme::block_scale`] and [`QuantScheme::code_of`]
///
/// A block `[1, group]` is a group of a row, `[1, k]` a whole row (per token, per channel), `[128, 128]` a tile. A
/// block that holds a NaN or an infinity has the scale NaN and codes 0; one of zeros has codes 0.
///
/// # Shapes
/// x and codes `[n, k]`, scale one entry a block, as in [`QuantSpec`]. Any extent may be zero.
///
/// # DTypes
/// x f32, f16 or bf16; codes i8, i4, f8e4m3, f8e5m2 or f4e2m1; scale f32 or e8m0.
///
/// # Layout
/// Any strides for x; rows of codes and scale are contiguous.
///
/// # Determinism
/// The same codes and scales at every level and on every device.
///
/// # Cost
/// Three operations per element (magnitude, quotient, rounding) and one per block; reads x, writes codes and scale.
///
/// # Errors
/// `Shape`, `DType`, `Layout` (an output overlaps itself), `Attribute` (a scheme with offsets, two levels or
/// scales of 16 bits, which may round below the largest magnitude).
///
/// # Composition
/// In f32 scratch: magnitudes, their maximum over the block, the scale, then as quantize.
///
/// # Source
/// OCP Microscaling formats 1.0, 6.3; DeepSeek-V3 2024, 3.3.
#[derive(Clone, Debug, PartialEq)]
pub struct DynamicQuantizeSpec {
    x: TensorSpec,
    quant: QuantSpec,
}

impl DynamicQuantizeSpec {
    /// Quantizes `x` into the codes and scales of `quant`.
    pub fn new(x: &TensorSpec, quant: &QuantSpec) -> Result<Self> {
        let scheme = quant.scheme();
        expect_dims(OP, "x", x, &[quant.n(), quant.k()])?;
        expect_dtype(OP, "x", x, &[DType::F32, DType::F16, DType::BF16])?;
        if matches!(scheme.code, DType::U4 | DType::U8) {
            let wanted = "i8, i4, f8e4m3, f8e5m2 or f4e2m1";
            return Err(OpError::dtype(OP, "codes", scheme.code, wanted));
        }
        if scheme.offset != Offset::None {
            let what = format!("is {:?}, expected none: the range is symmetric", scheme.offset);
            return Err(OpError::attribute(OP, "offset", what));
        }
        if !matches!(scheme.scale, ScaleKind::F32 | ScaleKind::E8M0) {
            let what = format!("is {:?}, expected f32 or e8m0", scheme.scale);
            return Err(OpError::attribute(OP, "scale", what));
        }
        expect_writable(OP, "codes", quant.codes())?;
        expect_writable(OP, "scale", quant.scale())?;
        Ok(Self { x: *x, quant: quant.clone() })
    }

    /// Numbers.
    pub fn x(&self) -> &TensorSpec {
        &self.x
    }
    /// Codes and scale.
    pub fn quant(&self) -> &QuantSpec {
        &self.quant
    }
}

impl Contract for DynamicQuantizeSpec {
    fn name(&self) -> &'static str {
        OP
    }

    fn operands<'a>(&'a self, visit: &mut dyn FnMut(Operand<'a>)) {
        visit(Operand { name: "x", spec: &self.x, access: Access::Read });
        visit(Operand { name: "codes", spec: self.quant.codes(), access: Access::Write });
        visit(Operand { name: "scale", spec: self.quant.scale(), access: Access::Write });
    }

    fn cost(&self) -> Cost {
        let elements = (self.x.numel() as u64).saturating_mul(3);
        streaming_cost(self, elements.saturating_add(self.quant.scale().numel() as u64))
    }

    fn reference(&self, inputs: &[&[f64]]) -> Vec<Vec<f64>> {
        let (n, k, scheme) = (self.quant.n(), self.quant.k(), self.quant.scheme());
        let [block_rows, block_columns] = scheme.blocks(n, k);
        let place =
            |row: usize, column: usize| row / scheme.block[0] * block_columns + column / scheme.block[1];
        let x = |row: usize, column: usize| inputs[0][row * k + column] as f32;
        let mut largest = vec![0f32; block_rows * block_columns];
        for row in 0..n {
            for column in 0..k {
                let (size, largest) = (x(row, column).abs(), &mut largest[place(row, column)]);
                // Once no finite number, always none.
                if !size.is_finite() || size > *largest {
                    *largest = if largest.is_nan() || !size.is_finite() { f32::NAN } else { size };
                }
            }
        }
        let scales: Vec<f32> = largest.into_iter().map(|largest| scheme.block_scale(largest)).collect();
        let top = scheme.symmetric_top();
        let mut codes = Vec::with_capacity(n * k);
        for row in 0..n {
            for column in 0..k {
                let code = scheme.code_of(x(row, column), scales[place(row, column)], 0.0);
                codes.push(f64::from(code.clamp(-top, top)));
            }
        }
        vec![codes, scales.into_iter().map(f64::from).collect()]
    }

    /// The rules fix every rounding.
    fn tolerance(&self) -> Vec<Tolerance> {
        vec![Tolerance::EXACT; 2]
    }
}

impl Cases for DynamicQuantizeSpec {
    fn cases() -> Result<Vec<Case<Self>>> {
        let scheme = |code, block, scale| QuantScheme::new(code, block, scale, Offset::None);
        let schemes = [
            ("int8_row", QuantScheme::INT8_ROW),
            ("int8_g32", scheme(DType::I8, [1, 32], ScaleKind::F32)?),
            ("int8_g64_e8m0", scheme(DType::I8, [1, 64], ScaleKind::E8M0)?),
            ("int4_g32", scheme(DType::I4, [1, 32], ScaleKind::F32)?),
            ("f8_g128", QuantScheme::F8_GROUP),
            ("f8_block", QuantScheme::F8_BLOCK),
            ("f8_block_e8m0", QuantScheme::F8_BLOCK_E8M0),
            ("f8e5m2_row", scheme(DType::F8E5M2, [1, usize::MAX], ScaleKind::F32)?),
            ("mxfp8", QuantScheme::MXFP8),
            ("mxfp4", QuantScheme::MXFP4),
            ("f4_g16", scheme(DType::F4E2M1, [1, 16], ScaleKind::F32)?),
            ("f4_tile", scheme(DType::F4E2M1, [4, 7], ScaleKind::F32)?),
        ];
        let mut cases = Vec::new();
        let edges = [
            ("empty_n", 0, 32),
            ("empty_k", 3, 0),
            ("one", 1, 1),
            ("ragged", 5, 83),
            ("tall", 131, 40),
            // The last group is whole vectors, and shorter than the others.
            ("half_a_group", 3, 48),
            ("typical", 9, 576),
            ("long", 2, 1601),
        ];
        for (name, scheme) in schemes {
            for (i, (edge, n, k)) in edges.into_iter().enumerate() {
                let dtype = [DType::F32, DType::F16, DType::BF16][i % 3];
                let spec = Self::new(&TensorSpec::of(dtype, &[n, k])?, &QuantSpec::of(scheme, n, k)?)?;
                let case = Case::new(format!("dynamic_quantize/{name}_{dtype}/{edge}"), spec);
                cases.push(case.fill("x", Fill::Range(-3.0, 3.0)));
            }
            let quant = QuantSpec::of(scheme, 6, 140)?;
            let x = TensorSpec::of(DType::F32, &[6, 140])?;
            // Sizes from the smallest to the largest f32 and zeros, a block each; then what is no number.
            let sizes = |i: usize| 2f64.powi([-149, -140, -127, -3, 0, 60, 127][i / 20 % 7]);
            let value = |i: usize| (i % 5) as f64 / 2.0 - 1.0;
            let wide = Fill::Values((0..6 * 140).map(|i| sizes(i) * value(i)).collect());
            let case = Case::new(format!("dynamic_quantize/{name}/sizes"), Self::new(&x, &quant)?);
            cases.push(case.fill("x", wide));
            let spoiled = |i: usize| match i {
                70 => f64::NAN,
                300 => f64::INFINITY,
                _ => value(i),
            };
            let spoiled = Fill::Values((0..6 * 140).map(spoiled).collect());
            let case = Case::new(format!("dynamic_quantize/{name}/no_numbers"), Self::new(&x, &quant)?);
            cases.push(case.fill("x", spoiled.clone()));
            if scheme == QuantScheme::INT8_ROW {
                let x = x.with_dtype(DType::BF16);
                let case =
                    Case::new(format!("dynamic_quantize/{name}_bf16/no_numbers"), Self::new(&x, &quant)?);
                cases.push(case.fill("x", spoiled));
            }
            let x =
                TensorSpec::of(DType::F32, &[141, 8])?.transpose(0, 1)?.narrow(0, 1, 6)?.narrow(1, 0, 140)?;
            let case = Case::new(format!("dynamic_quantize/{name}/strided"), Self::new(&x, &quant)?);
            cases.push(case.fill("x", Fill::Range(-3.0, 3.0)));
        }
        Ok(cases)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ActQuant;
    use super::*;

    fn spec(scheme: QuantScheme, n: usize, k: usize) -> DynamicQuantizeSpec {
        let x = TensorSpec::of(DType::F32, &[n, k]).unwrap();
        DynamicQuantizeSpec::new(&x, &QuantSpec::of(scheme, n, k).unwrap()).unwrap()
    }

    #[test]
    fn tiles_by_hand() {
        let scheme = QuantScheme { block: [2, 2], ..QuantScheme::MXFP4 };
        let got = spec(scheme, 3, 3).reference(&[&[1.0, -6.0, 0.0, 3.0, 2.5, 0.0, 8.0, 5.0, 1.0]]);
        assert_eq!(got[0], [1.0, -6.0, 0.0, 3.0, 2.0, 0.0, 4.0, 2.0, 4.0]);
        assert_eq!(got[1], [1.0, 2f64.powi(-127), 2.0, 0.25]);
        assert_eq!(spec(scheme, 3, 3).cost().flops, 3 * 9 + 4);
    }

    #[test]
    fn rows_and_groups_are_rounded_as_activations_are() {
        let x: Vec<f64> = (0..70).map(|i| f64::from(i * 37 % 101 - 50) / 7.0).collect();
        let narrow: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        let group = QuantScheme { block: [1, 32], ..QuantScheme::INT8_ROW };
        let got =
            spec(group, 1, 70).reference(&[&x.iter().map(|&x| f64::from(x as f32)).collect::<Vec<_>>()]);
        for (g, part) in narrow.chunks(32).enumerate() {
            let mut codes = vec![0i8; part.len()];
            assert_eq!(got[1][g], f64::from(ActQuant::round(part, &mut codes)));
            assert!(codes.iter().zip(&got[0][g * 32..]).all(|(&a, &b)| f64::from(a) == b));
        }
    }

    #[test]
    fn schemes_without_a_symmetric_rule_are_refused() {
        let new = |scheme| {
            let x = TensorSpec::of(DType::F32, &[2, 256]).unwrap();
            DynamicQuantizeSpec::new(&x, &QuantSpec::of(scheme, 2, 256).unwrap())
        };
        for scheme in [QuantScheme::Q4_1, QuantScheme::Q8_0, QuantScheme::Q6_K] {
            assert!(new(scheme).is_err(), "{scheme:?}");
        }
        let zero = QuantScheme::new(DType::I8, [1, 32], ScaleKind::F32, Offset::ZeroPoint).unwrap();
        assert!(matches!(new(zero).unwrap_err(), OpError::Attribute { .. }));
    }

    #[test]
    fn every_case_is_legal() {
        assert!(DynamicQuantizeSpec::cases().unwrap().len() > 100);
    }
}
